"""When the agent has next hops asked for again, and flows decided again: by MTUs and neighbours, with no kernel."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import abi
from headrace.agent.underlay import BY_MAC, Underlay, remote_vteps
from headrace.datapath.netlink import Link, Neighbour, Route

REMOTE, UPLINKS = "192.0.2.2", ("uplink", "second")


def link(name: str, ifindex: int, mtu: int) -> Link:
    facts: dict[str, Any] = dict.fromkeys(("master", "lower", "peer", "peer_nsid"))
    return Link(name=name, ifindex=ifindex, mtu=mtu, kind="", mac="02:00:00:00:00:01", up=True, carrier=True, **facts)


class Kernel:
    """Netlink and the datapath, as far as they matter here."""

    def __init__(self) -> None:
        self.out = 1
        self.mac: str | None = "02:00:00:00:00:99"
        self.gateway: str | None = None
        self.found: list[tuple[int, int]] = []
        self.forgotten: list[bool] = []

    def route(self, _: str) -> Route:
        return Route(ifindex=self.out, gateway=self.gateway, source=None, mtu=None, local=False)

    def neighbours(self) -> list[Neighbour]:
        return [Neighbour(ifindex=number, address=REMOTE, mac=self.mac, managed=True) for number in (1, 2)]

    def ensure_managed_neighbour(self, ifindex: int, address: str) -> None:
        """It is resolved already."""

    def release_neighbour(self, ifindex: int, address: str) -> None:
        """Nobody asks for it any more."""

    def path_mtus(self) -> list[tuple[int, int]]:
        return self.found

    def forget_next_hops(self, *, redecide: bool = False) -> int:
        self.forgotten.append(redecide)
        return 8


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def underlay(kernel: Kernel) -> Underlay:
    return Underlay(kernel, kernel)  # type: ignore[arg-type]


def follow(underlay: Underlay, *mtus: int) -> None:
    """A pass in which the devices have these MTUs; the third is no uplink."""
    names = (*UPLINKS, "tap")
    links = [link(name, number, mtu) for number, (name, mtu) in enumerate(zip(names, mtus, strict=True), 1)]
    underlay.follow({REMOTE}, links, UPLINKS)


def test_what_stays_is_left_alone(underlay: Underlay, kernel: Kernel) -> None:
    for _ in range(3):
        follow(underlay, 1500, 1500, 1450)
    assert kernel.forgotten == []


@pytest.mark.parametrize("mtus", [(1400, 1500), (9000, 1500), (1500, 1400)])
def test_an_uplinks_mtu_redecides(underlay: Underlay, kernel: Kernel, mtus: tuple[int, int]) -> None:
    """Also that of one to which the kernel's answer for one flow does not point."""
    follow(underlay, 1500, 1500, 1450)
    follow(underlay, *mtus, 1450)
    follow(underlay, *mtus, 1450)
    assert kernel.forgotten == [True]


def test_a_workloads_mtu_is_its_own(underlay: Underlay, kernel: Kernel) -> None:
    follow(underlay, 1500, 1500, 1450)
    follow(underlay, 1500, 1500, 1400)
    assert kernel.forgotten == []


def test_another_neighbour_redecides_nothing(underlay: Underlay, kernel: Kernel) -> None:
    follow(underlay, 1500, 1500, 1450)
    kernel.mac = "02:00:00:00:00:98"
    follow(underlay, 1500, 1500, 1450)
    assert kernel.forgotten == [False]


@pytest.mark.parametrize(("mtu", "redecide"), [(1500, False), (1400, True)])
def test_a_route_over_another_device(underlay: Underlay, kernel: Kernel, mtu: int, redecide: bool) -> None:  # noqa: FBT001
    follow(underlay, 1500, mtu, 1450)
    kernel.out = 2
    follow(underlay, 1500, mtu, 1450)
    assert kernel.forgotten == [redecide]


def test_a_device_that_comes_back_with_another_mtu(underlay: Underlay, kernel: Kernel) -> None:
    follow(underlay, 1500, 1500, 1450)
    underlay.follow(set(), [], UPLINKS)
    follow(underlay, 1500, 1400, 1450)
    assert kernel.forgotten == [True]


@pytest.mark.parametrize(("found", "forgotten"), [([(1, 1500)], []), ([(1, 1400)], [True]), ([(7, 1400)], [])])
def test_an_agent_that_starts_believes_no_decision_by_another_mtu(
    underlay: Underlay, kernel: Kernel, found: list[tuple[int, int]], forgotten: list[bool]
) -> None:
    """The MTU may have changed while none ran; of a device that is gone there is nothing to say."""
    kernel.found = found
    follow(underlay, 1500, 1500, 1450)
    assert kernel.forgotten == forgotten


def test_a_neighbour_is_known_by_its_mac_one_behind_a_gateway_is_not(underlay: Underlay, kernel: Kernel) -> None:
    """A MAC that is not resolved for a moment is nobody else's meanwhile."""
    assert underlay.next_hops == {}
    for mac, known in (("02:00:00:00:00:99",) * 2, (None, "02:00:00:00:00:99"), ("02:00:00:00:00:98",) * 2):
        kernel.mac = mac
        follow(underlay, 1500, 1500, 1450)
        assert underlay.next_hops == {REMOTE: known}
    kernel.gateway = "192.0.2.254"
    follow(underlay, 1500, 1500, 1450)
    assert underlay.next_hops == {}


def test_who_is_known_by_a_mac_is_no_address() -> None:
    vtep = abi.Vtep(vtep=1, endpoint=abi.PORTS)
    keys = (abi.VtepKey(addr=bytes(10) + b"\xff\xff\xc0\x00\x02\x02"), abi.VtepKey(addr=BY_MAC + bytes(6)))
    tables = type("Tables", (), {"actual": {"hr_vteps": dict.fromkeys(keys, vtep)}})()
    assert remote_vteps(tables) == {REMOTE}
