"""The lab's uplinks carry what they promise: jumbo frames on a bond and its VLAN, queues, a tag in or out."""

from __future__ import annotations

import re

import pytest

from headrace.testing import kernel
from headrace.testing.labvm import LabVM

pytestmark = [pytest.mark.timeout(240), pytest.mark.needs("qemu", "program:busybox", "program:ethtool")]

MODULES = ("bonding", "8021q", "veth")
TRIES = " ".join(map(str, range(20)))
ROUND = """
BOND_MODE={mode} RX_VLAN={rx_vlan} bash /lab/uplinks.sh || exit 1
for address in 192.0.2.2 198.51.100.2 203.0.113.2 2001:db8::2 2001:db8:100::2; do
  size=8900; [ $address != 203.0.113.2 ] || size=1400
  # An error while addresses are still settling would count as one of the two.
  for try in {tries}; do ping -q -c 1 -W 1 $address >/dev/null 2>&1 && break; done
  ping -M do -q -c 2 -w 15 -i 0.2 -s $size $address | grep -o '[0-9]* received' | sed "s/^/{mode} $address /"
done
bond=/proc/net/bonding/uplink0
echo "{mode} $(grep 'Bonding Mode' $bond), $(grep -c '^Slave Interface' $bond) members"
echo "{mode} queues $(ls -d /sys/class/net/queues0/queues/rx-* | wc -l)"
echo "{mode} $(ethtool -k member0 | grep '^rx-vlan-offload')"
ip netns delete fabric; ip link delete uplink0
while ip link show member0 >/dev/null 2>&1 || ip link show queues0 >/dev/null 2>&1; do :; done
"""


@pytest.fixture(scope="module")
def said(lab_kernel: kernel.Kernel) -> str:
    """What two kinds of uplinks, one after the other in one boot, said of themselves."""
    rounds = (("active-backup", "on"), ("802.3ad", "off"))
    script = "".join(ROUND.format(mode=mode, rx_vlan=rx_vlan, tries=TRIES) for mode, rx_vlan in rounds)
    uplinks = (kernel.ASSETS / "uplinks.sh").read_text()
    result = LabVM(series=lab_kernel.series).run(script, files={"uplinks.sh": uplinks}, modules=MODULES, timeout=150)
    assert result.returncode == 0, result.output
    return result.output


@pytest.mark.parametrize("mode", ["active-backup", "802.3ad"])
@pytest.mark.parametrize("address", ["192.0.2.2", "198.51.100.2", "203.0.113.2", "2001:db8::2", "2001:db8:100::2"])
def test_frames_of_full_size_arrive(said: str, mode: str, address: str) -> None:
    assert f"{mode} {address} 2 received" in said


@pytest.mark.parametrize(
    ("mode", "name", "rx_vlan"),
    [("active-backup", "fault-tolerance", "on"), ("802.3ad", "IEEE 802.3ad", "off")],
)
def test_they_are_what_was_asked_for(said: str, mode: str, name: str, rx_vlan: str) -> None:
    assert re.search(rf"^{mode} Bonding Mode: .*{name}.*, 2 members$", said, re.MULTILINE)
    assert f"{mode} queues 4\n" in said
    assert f"{mode} rx-vlan-offload: {rx_vlan}\n" in said
