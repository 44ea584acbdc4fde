# Uplinks as hosts have them, for a lab VM (the host's own kernel may lack bonds and VLANs). Run or source it with bash.
#
#   uplink0          a bond of member0 and member1, MTU 9000            192.0.2.1/24     2001:db8::1/64
#   uplink0.100      a VLAN on it                                       198.51.100.1/24  2001:db8:100::1/64
#   queues0          a veth with 4 receive and 4 transmit queues        203.0.113.1/24
#   fabric           the namespace with the other ends, same names, addresses ending in 2
#
# BOND_MODE (active-backup), BOND_MTU (9000), BOND_VLAN (100), QUEUES (4), and RX_VLAN (on): whether the members take
# the VLAN tag out of the frame, as NICs do, or leave it in the octets.
# modules: bonding 8021q veth; programs: iproute2 ethtool
set -e
: "${BOND_MODE:=active-backup}" "${BOND_MTU:=9000}" "${BOND_VLAN:=100}" "${QUEUES:=4}" "${RX_VLAN:=on}"

ip netns add fabric
ip -n fabric link set lo up
for member in 0 1; do
  ip link add "member$member" mtu "$BOND_MTU" type veth peer "member$member" netns fabric mtu "$BOND_MTU"
done
ip link add queues0 numrxqueues "$QUEUES" numtxqueues "$QUEUES" type veth \
  peer queues0 netns fabric numrxqueues "$QUEUES" numtxqueues "$QUEUES"

# in_both COMMAND...: here and in the fabric.
in_both() {
  "$@"
  ip netns exec fabric "$@"
}

for member in member0 member1; do
  in_both ethtool -K "$member" rxvlan "$RX_VLAN" txvlan "$RX_VLAN"
done
lacp=
if [ "$BOND_MODE" = 802.3ad ]; then lacp="lacp_rate fast"; fi
in_both ip link add uplink0 mtu "$BOND_MTU" type bond mode "$BOND_MODE" miimon 100 $lacp
for member in member0 member1; do in_both ip link set "$member" master uplink0; done
in_both ip link set uplink0 up
in_both ip link add link uplink0 name "uplink0.$BOND_VLAN" type vlan id "$BOND_VLAN"
in_both ip link set "uplink0.$BOND_VLAN" up
in_both ip link set queues0 up

# number LAST COMMAND...: the addresses of one side.
number() {
  local last=$1
  shift
  "$@" address add "192.0.2.$last/24" dev uplink0
  "$@" address add "2001:db8::$last/64" dev uplink0 nodad
  "$@" address add "198.51.100.$last/24" dev "uplink0.$BOND_VLAN"
  "$@" address add "2001:db8:100::$last/64" dev "uplink0.$BOND_VLAN" nodad
  "$@" address add "203.0.113.$last/24" dev queues0
}
number 1 ip
number 2 ip -n fabric

# A bond carries nothing before its first member is up; LACP takes a second or two to agree.
for _ in $(seq 100); do
  if ping -c 1 -W 1 -q 192.0.2.2 >/dev/null 2>&1; then break; fi
done
