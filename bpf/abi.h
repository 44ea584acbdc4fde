/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Everything that user space may see of the datapath: keys, values, enums and reasons.
 *
 * The only shared definition: headrace/abi.py is generated from its BTF. No bit-fields, no implicit padding.
 * Addresses are 16 octets in network order, IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
 */
#ifndef HR_ABI_H
#define HR_ABI_H

#include <linux/types.h>

#define HR_PORTS 4096 /* local ports of a host; index 0 means "the uplink" in counters */
#define HR_ENDPOINTS 262144 /* indices of local ports, remote ports and VTEPs together */
#define HR_VTEPS 8192 /* tunnel endpoints of other hosts */
#define HR_PHYSICALS 16 /* physical networks of a host */
#define HR_UPLINKS 64 /* devices that lead out of it */
#define HR_PATHS 8 /* adjacencies a VTEP has, so that ECMP in the underlay spreads flows */
#define HR_REASONS 64 /* slots for enum hr_reason in the counters of a port */
#define HR_MARK \
	0x48724852 /* of a frame that the datapath or the agent sends to a port: the guard on its egress lets it pass */
#define HR_SEAM_MARK 9 /* of a frame in the seam, above: port index << HR_SEAM_SHIFT | adjacency's index */
#define HR_SEAM_MARK_SHIFT 28
#define HR_SEAM_SHIFT 16
#define HR_CONN_REST \
	64 /* for so many connections hr_conns has one index more: some always rest before they are used again */
#define HR_CONN_DEAD (1ULL << 63) /* in hr_conn.id: the sweeper owns the connection */

/* Why a packet was dropped, punted or not replayed. Names are API: `headrace reason list` prints them. */
enum hr_reason {
	HR_REASON_NONE, /* forwarded */
	HR_REASON_MALFORMED_ETHERNET, /* the frame ends inside its Ethernet header */
	HR_REASON_MALFORMED_ARP, /* the ARP message is truncated or not Ethernet over IPv4 */
	HR_REASON_MALFORMED_IPV4, /* the IPv4 header is truncated or contradicts itself */
	HR_REASON_MALFORMED_IPV6, /* the IPv6 header or its extension headers are truncated or too many */
	HR_REASON_MALFORMED_L4, /* the TCP, UDP, SCTP or ICMP header is truncated or contradicts itself */
	HR_REASON_MALFORMED_ND, /* a neighbour discovery message that RFC 4861 tells to discard */
	HR_REASON_MALFORMED_TUNNEL, /* the outer headers name us but the tunnel header is truncated or unknown */
	HR_REASON_VLAN_TAGGED, /* a VLAN tag on a port that is no trunk */
	HR_REASON_ETHERTYPE, /* an ethertype that the network does not carry */
	HR_REASON_SPOOFED_MAC, /* the port may not send from this MAC address */
	HR_REASON_SPOOFED_ADDRESS, /* the port may not send from this IP address */
	HR_REASON_SPOOFED_ARP, /* the ARP sender addresses are not the port's */
	HR_REASON_SPOOFED_ND, /* the neighbour discovery target or link-layer address is not the port's */
	HR_REASON_ROGUE_DHCP, /* a workload answers as a DHCP server */
	HR_REASON_ROGUE_RA, /* a workload advertises itself as a router */
	HR_REASON_MULTICAST_SOURCE, /* the source address or MAC is a multicast one */
	HR_REASON_PORT_DOWN, /* the port is administratively down */
	HR_REASON_NO_PORT, /* the device belongs to no port */
	HR_REASON_FRAGMENT_ORPHAN, /* a later fragment whose first one was not forwarded lately */
	HR_REASON_FRAGMENT_OVERLAP, /* a fragment that overlaps the first one */
	HR_REASON_FRAGMENT_TINY, /* a first fragment too short for its transport header */
	HR_REASON_ICMP_UNRELATED, /* an ICMP error that quotes no connection known here */
	HR_REASON_ACL_FROM_PORT, /* no egress rule of the sender's groups allows it */
	HR_REASON_ACL_TO_PORT, /* no ingress rule of the receiver's groups allows it */
	HR_REASON_CONNECTION_CUT, /* the connection's original direction is no longer allowed */
	HR_REASON_TCP_INVALID, /* a TCP segment that fits no state of its connection */
	HR_REASON_UNKNOWN_SEGMENT, /* nothing on this host uses the segment it arrived on */
	HR_REASON_UNKNOWN_VTEP, /* it came from a tunnel endpoint that is no host of ours */
	HR_REASON_UNKNOWN_MAC, /* nobody on the segment has this destination MAC */
	HR_REASON_HAIRPIN, /* the destination is the port it came from */
	HR_REASON_TUNNEL_LOOP, /* it came by tunnel and would leave by tunnel */
	HR_REASON_OUTER_FRAGMENT, /* the outer packet is a fragment (RFC 7348 section 4.3) */
	HR_REASON_TOO_BIG, /* longer than the network's MTU, or than the path to the other host takes */
	HR_REASON_NO_ROUTE, /* the underlay has no route to the VTEP */
	HR_REASON_NO_NEIGHBOUR, /* the underlay's next hop does not answer */
	HR_REASON_TABLE_FULL, /* no room for another connection */
	HR_REASON_QUOTA, /* the port has as many connections as it may have, or too large a share of a table nearly full */
	HR_REASON_BUSY, /* what it needs is being retired, or full for a moment; the sender will try again */
	HR_REASON_INTERNAL, /* a table or helper failed; a bug */
	HR_REASON_FROM_HOST, /* the host's own stack tried to reach a port */
	HR_REASON_ANSWERED, /* not dropped: the datapath answered it itself (ARP, ND) */
	HR_REASON_FLOODED, /* not dropped: copied to every place of the segment */
	HR_REASON_NESTED_SUPERPACKET, /* a super-packet that must be cut before its outer headers, and the host's seam is missing or does not cut; see headrace host check */
	HR_REASON_TCP_WINDOW, /* a TCP reset that its receiver would not believe */
	HR_REASON_BUDGET, /* the port sends too many packets that are denied, answered or flooded */
	HR_REASON_PUNTED, /* not dropped: the agent answers it (DHCP, router solicitations) */
	HR_REASON_GENEVE_OPTION, /* a Geneve option that must be understood, and is not (RFC 8926 section 3.5.1) */
	HR_REASON_NSH_EXHAUSTED, /* a service index of 0: its service path has a loop (RFC 8300 section 3) */
	HR_REASON_ECN, /* marked as congested on its way, though what is inside cannot say so (RFC 6040 section 4.2) */
};

/* How a packet entered, in the top four bits of hr_flow_key.where; the rest is the port index or what names the segment on its wire.
 * A segment is named in the same way: kind << HR_WHERE_SHIFT | id.
 */
enum hr_where {
	HR_WHERE_PORT, /* from a local port: its index */
	HR_WHERE_VXLAN, /* by tunnel: the VNI */
	HR_WHERE_GENEVE, /* the VNI */
	HR_WHERE_GRE, /* the key */
	HR_WHERE_MPLS_UDP, /* the label */
	HR_WHERE_MPLS_GRE, /* the label */
	HR_WHERE_NSH_GPE, /* the service path identifier */
	HR_WHERE_NSH_ETHERNET, /* the service path identifier */
	HR_WHERE_PHYSICAL, /* number of the physical network << 24 | 802.1ad VID << 12 | 802.1Q VID; no tag: 0 */
};
#define HR_WHERE_SHIFT 28
#define HR_WHERE_NONE 0xffffffff
#define HR_WHERE_ID ((1U << HR_WHERE_SHIFT) - 1)
#define HR_PHYSICAL_SHIFT 24
#define HR_SERVICE_SHIFT 12
#define HR_VID 0xfff

struct hr_flow_key {
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport; /* ICMP: identifier of a query, else 0 */
	__be16 dport; /* ICMP: type << 8 | code */
	__u32 where; /* enum hr_where << HR_WHERE_SHIFT | id */
	__u8 proto; /* IANA number, after IPv6 extension headers */
	__u8 pad[3];
};

enum hr_flow_flag {
	HR_FLOW_DECIDED = 1, /* the action below is valid while the epochs hold; else only the connection is */
	HR_FLOW_REPLY = 2, /* packets of this key travel against the connection's original direction */
	HR_FLOW_TUNNEL = 4, /* out is an adjacency; else a local port index */
	HR_FLOW_XDP = 8, /* out is a port behind XDP: the uplink's XDP program may deliver it itself */
	HR_FLOW_WHOLE = 16, /* super-packets may cross an underlay of veths as they are (HR_ADJACENCY_WHOLE) */
};

/* The decision about packets of one key. Only ever written whole, by bpf_map_update_elem. The kernel reuses elements under a
 * reader's feet, so a reader takes `last`, copies, takes `first`: unless both are equal the copy may be torn, and is a miss.
 */
struct hr_flow {
	__u32 first; /* unique to one writing */
	__u32 flags; /* enum hr_flow_flag */
	__u64 conn_id; /* must equal hr_conn.id, else the entry is a miss */
	__u32 conn; /* index in hr_conns */
	__u32 from_index;
	__u32 from_epoch;
	__u32 to_index;
	__u32 to_epoch;
	__u32 out; /* local port index, or adjacency with HR_FLOW_TUNNEL */
	__u8 eth_dst[6]; /* the frame decided on had these addresses; another frame is a miss */
	__u8 eth_src[6];
	__u8 outer_saddr[16]; /* by tunnel: the VTEP it came from, as hr_vtep_key has it; else zero */
	__u32 mtu; /* longest IP packet this action may carry, octets; 0: not judged here */
	__u32 segment; /* with HR_FLOW_TUNNEL: which wire it leaves by */
	__u32 hash; /* of the key */
	__u32 pad;
	__u32 last; /* equals first */
};

/* State of a connection. TCP follows RFC 9293; the rest use NEW until a reply, then ASSURED. */
enum hr_state {
	HR_STATE_NEW, /* one way so far: UDP, ICMP and the rest */
	HR_STATE_ASSURED, /* both ways seen */
	HR_STATE_STATELESS, /* decided by stateless groups: every direction by itself */
	HR_STATE_SYN_SENT, /* TCP: SYN seen */
	HR_STATE_SYN_RECEIVED, /* TCP: SYN answered */
	HR_STATE_ESTABLISHED, /* TCP: open, or adopted in mid-stream */
	HR_STATE_CLOSING, /* TCP: a FIN seen one way */
	HR_STATE_TIME_WAIT, /* TCP: FINs seen both ways */
	HR_STATE_CLOSED, /* TCP: reset */
};

enum hr_conn_flag {
	HR_CONN_STATEFUL_FROM = 1, /* the original sender's side tracks: replies to it are allowed */
	HR_CONN_STATEFUL_TO = 2, /* the original receiver's side tracks: replies from it are allowed */
	HR_CONN_ADOPTED = 4, /* picked up in mid-stream */
	HR_CONN_FIN_ORIGINAL = 8,
	HR_CONN_FIN_REPLY = 16,
};

struct hr_conn_counter {
	__u64 packets;
	__u64 octets; /* of the inner frame as the workload sent it */
	__u64 seen; /* CLOCK_MONOTONIC_COARSE, ns */
};

/* The rules that allowed one direction, by rule id; HR_RULE_* where no rule of a group was asked. */
struct hr_conn_rule {
	__u64 from_side;
	__u64 to_side;
};
#define HR_RULE_NONE 0 /* nothing allowed it */
#define HR_RULE_ESTABLISHED 1 /* a reply of an allowed connection */
#define HR_RULE_IMPLICIT 2 /* Neutron's implicit rules: DHCP client, ND, MLD */
#define HR_RULE_OPEN 3 /* port security is off */
#define HR_RULE_REMOTE 4 /* the other side is judged by its own host */

enum hr_tcp_known {
	HR_TCP_EDGE = 1, /* edge is set */
	HR_TCP_ACKED = 2, /* ack is set */
};

/* What one side of a TCP connection has sent so far (RFC 9293 section 3.4). */
struct hr_tcp_side {
	__u32 edge; /* the sequence number after the last octet it sent */
	__u32 ack; /* the highest it acknowledged */
	__u32 known; /* enum hr_tcp_known */
};

/* A connection: outlives decisions. The first 64 octets are all that a replay touches, but for TCP's numbers behind them. */
struct hr_conn {
	__u64 id; /* unique; 0: free; HR_CONN_DEAD set: being retired */
	__u32 timeout; /* ms of silence after which it is expired */
	__u8 state; /* enum hr_state */
	__u8 flags; /* enum hr_conn_flag */
	__u16 port; /* local port index whose quota it counts against */
	struct hr_conn_counter counter[2]; /* original, reply */
	struct hr_tcp_side tcp[2]; /* original, reply */
	struct hr_flow_key key[2]; /* original, reply; the second's where may be HR_WHERE_NONE */
	__u64 created; /* CLOCK_MONOTONIC_COARSE, ns */
	struct hr_conn_rule rule[2]; /* original, reply */
};

/* What a port has of the table of connections. */
struct hr_conn_count {
	__u64 live;
	__u64 evicted; /* half-open or finished ones that gave way to newer ones */
};

/* Connections that a port made lately, as indices in hr_conns; those that are half-open yet, or over, may have to give way. */
#define HR_HALF_OPEN 1024 /* a power of two */
struct hr_half_open {
	__u32 head; /* noted so far */
	__u32 tail; /* of these, taken or forgotten */
	__u32 conn[HR_HALF_OPEN]; /* by number modulo HR_HALF_OPEN */
};

/* The device a packet enters by -> the port it belongs to. */
struct hr_device {
	__u32 port; /* index in hr_ports */
};

enum hr_port_flag {
	HR_PORT_UP = 1, /* administratively up and applied */
	HR_PORT_SECURITY = 2, /* port security on: anti-spoofing and groups apply */
	HR_PORT_STATEFUL = 4, /* its groups are stateful */
	HR_PORT_ROUTER = 8, /* a router's own port: may send RA and other addresses */
	HR_PORT_PEER = 16, /* a veth: deliver straight to its peer */
	HR_PORT_XDP = 32, /* hook xdp: frames may be redirected from XDP */
	HR_PORT_DHCP4 = 64, /* the agent is its DHCPv4 server */
	HR_PORT_DHCP6 = 128, /* the agent is its DHCPv6 server */
	HR_PORT_RA = 256, /* the agent sends it router advertisements */
};

struct hr_port {
	__u64 policy; /* id of the set of its groups */
	__u32 flags; /* enum hr_port_flag */
	__u32 ifindex;
	__u32 segment;
	__u32 mtu; /* largest IP packet, octets */
	__u8 mac[6];
	__u16 vlan; /* a sub-port: its tag on its parent's device; else 0 */
};

/* admit: the VID of a tagged frame from a trunk's device -> the sub-port it belongs to. */
struct hr_subport_key {
	__u32 port; /* index of the trunk's own port */
	__u32 vid;
};
struct hr_subport {
	__u32 port; /* index in hr_ports */
};

/* The devices that lead out of the host: to other hosts, to a physical network, or to both. */
struct hr_uplink {
	__u32 physical; /* number of the physical network, from 1; 0: none */
	__u32 tunnels; /* 1: to other hosts; else what comes by it is no tunnel's, whatever it looks like */
};

/* The segments of physical networks that have ports here: what is not here is on the wire, which is a place like a VTEP. */
struct hr_wire {
	__u32 vtep; /* index: its adjacencies lead to the device */
	__u32 endpoint; /* index for what is on the wire of this segment */
};

/* anti_spoof: longest prefix over port, MAC and address. */
struct hr_source_key {
	__u32 prefixlen; /* bits of what follows */
	__u32 port;
	__u8 mac[6];
	__u8 pad[2];
	__u8 addr[16];
};
#define HR_SOURCE_PREFIX 96 /* bits before addr */
enum hr_source {
	HR_SOURCE_ADDRESS = 1, /* may send from it */
	HR_SOURCE_UNSPECIFIED = 2, /* 0.0.0.0 or :: only to get an address (DHCP, DAD) */
};

/* forward: MACs that no object names (address pairs', those behind ports without port security). One place may have so many,
 * that nobody crowds out others.
 */
#define HR_LEARNT_PORT 256 /* behind a local port */
#define HR_LEARNT_SEGMENT 1024 /* behind all VTEPs together, of one segment */
#define HR_LEARNT_AGE 300 /* seconds after which what was learnt on the wire of a physical network is forgotten */
struct hr_learnt { /* read and written as one word; all 0: being forgotten */
	__u32 endpoint; /* local port index, or the VTEP's endpoint index */
	__u16 vtep; /* 0: here */
	__u16 seen; /* on a wire: CLOCK_MONOTONIC when a walk showed it there, seconds modulo 2^16; else 0 */
};

/* respond: who has an address of a segment. Fixed addresses only. */
struct hr_neighbour_key {
	__u32 segment;
	__u8 addr[16];
};
struct hr_neighbour {
	__u8 mac[6];
	__u8 pad[2];
};

/* forward: where a MAC of a segment is. */
struct hr_fdb_key {
	__u32 segment;
	__u8 mac[6];
	__u8 pad[2];
};
struct hr_fdb {
	__u32 endpoint; /* index; a local port's index when vtep is 0 */
	__u32 vtep; /* 0: here; else index in hr_vteps */
};

/* forward: where broadcast and multicast of a segment go; slots count from 0 without gaps. */
struct hr_flood_key {
	__u32 segment;
	__u32 slot;
};
struct hr_flood {
	__u32 port; /* local port index, or 0 */
	__u32 vtep; /* VTEP index, or 0 */
};

/* The other hosts' tunnel endpoints, by address; where their frames show none (NSH over Ethernet), by the MAC of the next hop,
 * as 100::/64 (RFC 6666: nobody's), two zero octets and the MAC.
 */
#define HR_VTEP_MAC 0x01 /* the first octet then; nine zero octets follow */
struct hr_vtep_key {
	__u8 addr[16];
};
struct hr_vtep {
	__u32 vtep; /* index: its adjacencies are vtep * HR_PATHS ... */
	__u32 endpoint; /* index for what is learnt behind it */
};

enum hr_adjacency_state {
	HR_ADJACENCY_EMPTY,
	HR_ADJACENCY_UNRESOLVED, /* addresses known, next hop not: the walk asks the kernel's FIB */
	HR_ADJACENCY_RESOLVED,
};

enum hr_adjacency_flag {
	HR_ADJACENCY_WHOLE = 1, /* the underlay is veths: super-packets reach the other host as they are */
	HR_ADJACENCY_WIRE = 2, /* a device of a physical network: there is no next hop, and no outer header but tags */
};

/* Outer header and next hop towards a VTEP on one of its paths. */
struct hr_adjacency {
	__u32 state; /* enum hr_adjacency_state; written last */
	__u32 ifindex; /* egress device */
	__u8 eth_dst[6];
	__u8 eth_src[6];
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 mtu; /* of the egress device, octets */
	__be16 port; /* outer UDP destination of VXLAN */
	__u16 flags; /* enum hr_adjacency_flag */
	__u32 gateway; /* the next hop is not the VTEP itself */
};

/* acl: (policy, direction, family, protocol, port) -> class of selectors allowed. Directions are the port's own. */
enum hr_direction {
	HR_FROM_PORT,
	HR_TO_PORT,
};
struct hr_acl_service_key {
	__u32 prefixlen;
	__u16 direction; /* enum hr_direction */
	__u16 family; /* 4 or 6 */
	__u64 policy;
	__u8 proto;
	__u8 pad;
	__be16 port; /* destination port; ICMP: type << 8 | code */
	__u32 pad2;
};
#define HR_SERVICE_ANY 96 /* prefix: any protocol */
#define HR_SERVICE_PROTO 112 /* prefix: one protocol, any port; + bits of the port */
struct hr_acl_service {
	__u64 class_id; /* 0: no rule with a remote */
	__u64 rule; /* a rule for any address that allows it, or 0 */
	__u64 remotes; /* the set of addresses that rules with a remote speak of, or 0 */
};

/* acl: (set of addresses, address of the other side) -> class of selectors it is in. Policies that speak of the same share a set.
 * Single addresses have a table of their own, a hash, which is asked first: a set may have many thousand of them.
 */
struct hr_acl_address_key {
	__u64 remotes;
	__u8 addr[16];
};
struct hr_acl_remote_key {
	__u32 prefixlen;
	__u32 pad;
	__u64 remotes;
	__u8 addr[16];
};
#define HR_REMOTE_PREFIX 96 /* bits before addr */
struct hr_acl_remote {
	__u64 class_id;
	__u64 rule; /* a rule for any protocol that allows it, or 0 */
};

/* acl: do the two classes meet. Class ids are unique over all policies. */
struct hr_acl_match_key {
	__u64 remote_class;
	__u64 service_class;
};
struct hr_acl_match {
	__u64 rule;
};

/* Ports of the first fragment, for the later ones (RFC 791, RFC 8200 section 4.5). Only ever written whole; as of hr_flow,
 * a copy whose ends differ is a miss.
 */
struct hr_fragment_key {
	__u8 saddr[16];
	__u8 daddr[16];
	__u32 where;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};
struct hr_fragment {
	__u32 first; /* unique to one writing */
	__be16 sport;
	__be16 dport;
	__u64 seen; /* ns */
	__u32 first_length; /* octets of payload in the first fragment */
	__u32 last; /* equals first */
};

/* Which first fragments a port keeps; the oldest gives way to a newer one, so that no port crowds out another. */
#define HR_FRAGMENTS_PORT 64
struct hr_fragment_slot {
	__u32 port; /* the local sender, else the local receiver, of a flood the first */
	__u32 slot; /* below HR_FRAGMENTS_PORT */
};

struct hr_counter {
	__u64 packets;
	__u64 octets;
};
struct hr_port_counters {
	struct hr_counter from_port; /* accepted from the workload */
	struct hr_counter to_port; /* delivered to the workload */
	struct hr_counter walked; /* of both, those that took the walk */
};

/* Which index the agent gave to what, by a digest of its name: kept here so that a restart gives the same again. */
struct hr_name_key {
	__u8 digest[16];
};
struct hr_name {
	__u32 index;
};

enum hr_config_flag {
	HR_CONFIG_CLAMP = 1, /* lower the MSS that workloads offer to what the path takes */
	HR_CONFIG_ANY_VTEP = 2, /* take tunnelled frames from whoever sends them */
};

/* What the walk needs of this host. */
struct hr_config {
	__u8 vtep4[16]; /* own tunnel endpoints; zero: none */
	__u8 vtep6[16];
	__be16 port; /* UDP port of VXLAN */
	__u16 flags; /* enum hr_config_flag */
	__u32 quota; /* connections a port may have; 0: as many as fit */
	__u32 wires; /* 1 << enum hr_where of each that a network here travels on; others are the kernel's, but VXLAN */
	__u32 seam; /* ifindex of the veth that cuts super-packets; 0: none */
};

/* What the last walk on this CPU concluded; for tests and `headrace trace`. */
struct hr_conclusion {
	__u32 reason; /* enum hr_reason */
	__u32 verdict; /* TC_ACT_* or XDP_* returned */
	__u32 ifindex; /* where it was sent, 0: nowhere */
	__u32 replayed; /* 1: by a flow entry */
	struct hr_flow_key key;
	__u32 copies; /* of a flooded frame */
	struct hr_conn_rule rule;
};

/* A frame handed to the agent, which answers it: hr_punts. */
#define HR_PUNT_OCTETS 1500
struct hr_punt {
	__u32 port; /* local port index it came from */
	__u32 ifindex; /* the port's device */
	__u32 length; /* of what follows, octets */
	__u8 octets[HR_PUNT_OCTETS]; /* the frame from its Ethernet header on, cut where it is longer */
};

/* What one watcher of drops wants to see; written by the watcher, in its slot. */
#define HR_WATCHERS 4
#define HR_WATCH_ALL 0xffffffff
struct hr_watch {
	__u64 until; /* CLOCK_MONOTONIC, ns: asked for until then, and renewed while it watches; 0: nobody has the slot */
	__u64 owner; /* drawn by the watcher, so that nobody renews another's slot */
	__u64 reasons; /* bit 1 << reason of each enum hr_reason wanted */
	__u32 port; /* local port index that the drop counts on or that it would have reached, 0: the uplink, HR_WATCH_ALL: any */
	__u32 rate; /* samples a second at most */
};
/* What the datapath keeps for a watcher. */
struct hr_watch_state {
	__u64 next; /* CLOCK_MONOTONIC, ns: when the next token is due */
	__u64 missed; /* wanted, but over the rate or without room */
};

/* A dropped frame, in a watcher's ring buffer. */
#define HR_SAMPLE_OCTETS 128
struct hr_sample {
	__u64 time; /* CLOCK_MONOTONIC, ns */
	__u32 reason; /* enum hr_reason */
	__u32 port; /* index of the port that the drop counts on; 0: the uplink */
	__u32 where; /* as hr_flow_key.where: how it entered; HR_WHERE_NONE: not known yet */
	__u32 ifindex; /* device that it was dropped on */
	__u32 length; /* of the frame, octets */
	__u32 outer; /* octets of outer headers before the workload's frame */
	__u32 captured; /* octets of frame that are set */
	__u32 to; /* index of the local port that it would have reached, 0: none, or not known yet */
	__u8 frame[HR_SAMPLE_OCTETS]; /* how it begins */
};

/* Argument of the program hr_clocks: what two clocks of the kernel show at one moment. */
struct hr_clocks {
	__u64 jiffies; /* jiffies64 */
	__u64 monotonic; /* CLOCK_MONOTONIC, ns */
};

/* Argument of the program hr_unlearn: forget where a MAC was learnt. */
struct hr_unlearning {
	__u32 segment;
	__u8 mac[6];
	__u16 aged; /* 1: only if it is on the wire still, for all that is known; decisions stay right */
};

/* Argument of the program hr_bump: raise epochs. */
struct hr_bump {
	__u32 count;
	__u32 index[63];
};

/* Argument of the program hr_carry: what tables of another ABI counted between being copied and being left. */
struct hr_carry {
	__u64 id; /* of a connection, which must still be it; 0: only the port's counts */
	__u32 conn; /* index in hr_conns */
	__u32 timeout; /* ms; taken with the state */
	__u32 before; /* enum hr_state; the connection must still have it to take `state` */
	__u32 state;
	__u32 flags; /* enum hr_conn_flag, to add */
	__u32 port; /* index in hr_ports whose counts grow by what follows */
	struct hr_conn_counter counter[2]; /* to add; seen: if later */
	struct hr_tcp_side tcp[2]; /* if further */
	struct hr_port_counters counters; /* to add, on this CPU */
	__u64 connections; /* to add */
	__u64 packets; /* to add to a reason, on this CPU */
	__u32 reason; /* enum hr_reason */
	__u32 pad;
};

#endif
