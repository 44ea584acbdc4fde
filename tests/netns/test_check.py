"""``headrace host check`` here and on the oldest kernel, on the uplinks that people have; and traffic over those."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace.testing import kernel
from headrace.testing.cloud import HEADRACE
from headrace.testing.labvm import LabVM
from headrace.testing.topology import CommandFailed, Topology

STATE = """
networks: [{id: blue, segment: {id: 7}, mtu: 1430}]
hosts: [{id: h1, vteps: [ONE]}, {id: h2, vteps: [TWO]}]
security_groups:
  - id: g
    rules: [{id: out, direction: egress}, {id: ping, direction: ingress, protocol: 1}]
ports:
  - {id: p1, network: blue, mac: "02:00:00:00:00:01", addresses: [10.0.0.1], security_groups: [g], host: h1}
  - {id: p2, network: blue, mac: "02:00:00:00:00:02", addresses: [10.0.0.2], security_groups: [g], host: h2}
"""


def config(directory: Path, *lines: str) -> Path:
    path = directory / "agent.toml"
    path.write_text("\n".join(['host = "h1"', f'state = "{directory}/state.yaml"', *lines]) + "\n")
    return path


def state(one: str, two: str) -> str:
    """Desired state with the hosts' tunnel endpoints."""
    return STATE.replace("ONE", one).replace("TWO", two)


def checks(output: str) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in json.loads(output)}


def test_a_host_that_is_fit_is_left_as_it_was() -> None:
    with Topology() as topology:
        a, b = topology.host("a"), topology.host("b")
        topology.link(a, "up0", b, "up0", a_addresses=["192.0.2.1/24", "2001:db8::1/64"], mtu=1600)
        bpf = topology.bpffs()
        (topology.directory / "state.yaml").write_text(state("192.0.2.1", "192.0.2.2"))
        path = config(topology.directory, f'bpf = "{bpf}/headrace"', 'uplinks = ["up0"]')
        for family in ("ipv4", "ipv6"):
            a.sysctl(f"net.{family}.fib_multipath_hash_policy", 1)
        before = sorted(bpf.rglob("*"))
        found = checks(a.run([*HEADRACE, "host", "check", "--config", str(path), "-o", "json"]).stdout)
        assert {name for name, row in found.items() if row["state"] != "ok"} == set()
        assert found["vteps"]["found"] == "192.0.2.1, 2001:db8::1 (first of the uplinks)"
        assert found["uplink up0: mtu"]["found"] == "1600, room for networks of 1530"
        assert sorted(bpf.rglob("*")) == before
        assert not a.run("nft list tables").stdout
        assert len(a.ip("link show")) == 2


def test_what_is_wrong_is_named_with_its_cure() -> None:
    with Topology() as topology:
        a, b = topology.host("a"), topology.host("b")
        topology.link(a, "up0", b, "up0", a_addresses=["192.0.2.1/24"])
        a.run("ip link add br0 type bridge")
        a.run("ip link set up0 master br0")
        (topology.directory / "state.yaml").write_text(state("192.0.2.1", "192.0.2.2").replace("1430", "1480"))
        lines = (f'bpf = "{topology.directory}/pins"', 'uplinks = ["up0", "gone0"]', 'vteps = ["192.0.2.9"]')
        path = config(topology.directory, *lines)
        command = [*HEADRACE, "host", "check", "--config", str(path), "-o", "json"]
        done = a.run(command, check=False)
        assert done.returncode == 1
        found = checks(done.stdout)
        assert found["bpffs"]["cure"] == f"mount -t bpf bpf {topology.directory}"
        assert found["vteps"]["found"] == "192.0.2.9 is no address of this host"
        assert found["uplink up0"]["cure"] == "name br0 instead, which has the traffic"
        assert found["uplink gone0"]["state"] == "fail"
        assert "1530 needed" in found["uplink up0: mtu"]["found"]
        multipath = found["net.ipv4.fib_multipath_hash_policy"]
        assert multipath["state"] == "warn"
        assert "sysctl -w net.ipv4.fib_multipath_hash_policy=1" in multipath["cure"]
        (topology.directory / "state.yaml").write_text(STATE)
        found = checks(a.run(command, check=False).stdout)
        assert "'ONE' is not an IP address" in found["state"]["found"]
        path.write_text('host = "h1"\nuplink = ["up0"]\n')
        with pytest.raises(CommandFailed, match="did you mean `uplinks`"):
            a.run(command)


# In the lab VM: the hosts are the machine itself and the namespace `fabric`, joined by a bond with a VLAN on it. Their
# tunnel is first between the VLAN's IPv4 addresses, then between the bond's own IPv6 addresses.
SCRIPT = """
set -e
bash /lab/uplinks.sh
mkdir -p /tmp/lab && cd /tmp/lab
for n in 1 2; do
  mkdir bpf$n && mount -t bpf bpf bpf$n
  ip netns add w$n
  ip link add tapp$n mtu 1430 type veth peer eth0 netns w$n mtu 1430 address 02:00:00:00:00:0$n
  ip -n w$n address add 10.0.0.$n/24 dev eth0
  ip -n w$n link set eth0 up
  cat >h$n.toml <<END
host = "h$n"
state = "/tmp/lab/state.yaml"
uplinks = ["uplink0.100", "uplink0"]
vteps = ["198.51.100.$n", "2001:db8::$n"]
bpf = "/tmp/lab/bpf$n/headrace"
run = "/tmp/lab/run$n"
END
done
ip link set tapp2 netns fabric

tunnel() {
  sed -e "s/ONE/'$1'/" -e "s/TWO/'$2'/" /lab/state.yaml >new.yaml && mv new.yaml state.yaml
}
# applied TIMES: both agents have applied desired state so often.
applied() {
  for _ in $(seq 300); do
    if [ $(grep -c applied h1.log) -ge $1 ] && [ $(grep -c applied h2.log) -ge $1 ] && grep -q state=up h1.log &&
      grep -q state=up h2.log; then return; fi
    sleep 0.1
  done
  cat h1.log h2.log
  return 1
}
carry() {
  before=$(cat /sys/class/net/uplink0.100/statistics/tx_packets)
  echo "$1 $(ip netns exec w1 ping -q -c 40 -i 0.02 -W 5 -s 1402 -M do 10.0.0.2 | grep -o '[0-9]* received')"
  echo "$1 by the VLAN: $(($(cat /sys/class/net/uplink0.100/statistics/tx_packets) - before))"
}
tunnel 198.51.100.1 198.51.100.2
$HEADRACE agent --config h1.toml >h1.log 2>&1 &
nsenter --net=/run/netns/fabric $HEADRACE agent --config h2.toml >h2.log 2>&1 &
applied 1
carry vlan
tunnel 2001:db8::1 2001:db8::2
applied 2
carry bond
cat h1.log h2.log
$HEADRACE host check --config h1.toml -o json >/lab/check.json
"""


@pytest.fixture(scope="module")
def lab(lab_kernel: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, dict[str, Any]]]:
    """What a host on bond and VLAN said, and what was found there."""
    share = tmp_path_factory.mktemp("lab")
    files = {"uplinks.sh": (kernel.ASSETS / "uplinks.sh").read_text(), "state.yaml": STATE}
    home = f"export PYTHONPATH={Path(headrace.__file__).parents[1]} HEADRACE='{shlex.join(HEADRACE)}'\n"
    modules = ("bonding", "8021q", "veth", "cls_bpf", "sch_ingress", "nf_tables")
    vm = LabVM(series=lab_kernel.series, memory=1536, cpus=2)
    result = vm.run(home + SCRIPT, files=files, modules=modules, share=share, timeout=300)
    assert result.returncode == 0, result.output
    return result.output, checks((share / "check.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.needs("qemu", "program:busybox", "program:ethtool")
class TestOnBondAndVlan:
    """One boot for all."""

    def test_the_host_is_fit(self, lab: tuple[str, dict[str, dict[str, Any]]]) -> None:
        found = lab[1]
        assert {name for name, row in found.items() if row["state"] == "fail"} == set()
        assert found["tc hook"]["found"] == "clsact"
        assert found["uplink uplink0"]["found"] == "a bond, mode active-backup, of member0, member1"
        assert found["uplink uplink0.100"]["found"].startswith("a VLAN 100 on uplink0;")
        assert found["uplink uplink0.100: mtu"]["found"] == "9000, room for networks of 8930"

    def test_the_vlan_carries_the_tunnel(self, lab: tuple[str, dict[str, dict[str, Any]]]) -> None:
        assert "vlan 40 received" in lab[0]
        assert int(re.findall(r"vlan by the VLAN: (\d+)", lab[0])[0]) >= 40

    def test_the_bond_carries_the_tunnel(self, lab: tuple[str, dict[str, dict[str, Any]]]) -> None:
        assert "bond 40 received" in lab[0]
        assert int(re.findall(r"bond by the VLAN: (\d+)", lab[0])[0]) < 10
