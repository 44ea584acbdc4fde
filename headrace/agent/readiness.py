"""What this host has of what Headrace needs: kernel, BPF, nftables, certificate, sysctls, devices. Changes nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import datetime as dt
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from headrace.agent.config import AgentConfig
from headrace.agent.desired import restore
from headrace.agent.guard import ruleset
from headrace.agent.seam import BACKLOG, BACKLOG_FILE, NEAR, Seam, ends_of, faults
from headrace.agent.underlay import own_vteps
from headrace.agent.uplink import Finding, ip_versions, judge
from headrace.controller.identity import Files, common_name, expiry
from headrace.datapath.attach import attach_tc, detach
from headrace.datapath.bpf import OBJECTS, PARTS
from headrace.datapath.libbpf import Object
from headrace.datapath.netlink import Netlink
from headrace.errors import HeadraceError, InvalidInput, NotFound, NotSupported
from headrace.model import Network, State, document

OLDEST = (6, 1)
CLONE_NEWNET = 0x40000000
LOOPBACK = 1
SMALL = {"hr_conns": 1024, "hr_conn_free": 1024, "hr_flows": 2048}
SYSCTL_D = "/etc/sysctl.d/90-headrace.conf"
SOON = dt.timedelta(days=30)
"""A certificate that ends within this time is to be renewed."""


def look(config: AgentConfig) -> Iterator[Finding]:
    """Everything, in the order in which it would have to be mended."""
    yield kernel(platform.release())
    root = os.geteuid() == 0
    if not root:
        cure = "run it as root to try the programs and nftables too"
        yield Finding(check="root", state="warn", found="not root: programs are not tried", cure=cure)
    pins = Path(config.bpf)
    yield (mounted := bpffs(pins, Path("/proc/self/mountinfo").read_text()))
    if root and mounted.state == "ok":
        yield from programs(pins)
    yield guard(config, try_it=root)
    if config.controller.startswith("https:"):
        yield certificate(config, dt.datetime.now(dt.UTC))
    with Netlink() as netlink:
        yield from network(config, netlink)


def kernel(release: str) -> Finding:
    """Its version."""
    match = re.match(r"(\d+)\.(\d+)", release)
    fits = match is not None and (int(match[1]), int(match[2])) >= OLDEST
    cure = "" if fits else f"Linux {OLDEST[0]}.{OLDEST[1]} or later: Debian 12, Ubuntu 24.04, RHEL 10"
    return Finding(check="kernel", state="ok" if fits else "fail", found=release, cure=cure)


def bpffs(pins: Path, mountinfo: str) -> Finding:
    """Whether the pins' directory is on a BPF file system (proc(5), mountinfo)."""
    mounts = [(line.split()[4], line.partition(" - ")[2].split()[0]) for line in mountinfo.splitlines()]
    above = [(point, kind) for point, kind in mounts if pins.is_relative_to(point)]
    point, kind = max(above, key=lambda mount: len(mount[0]), default=("/", "none"))
    if kind == "bpf":
        return Finding(check="bpffs", state="ok", found=f"{pins} on {point}")
    cure = "mount -t bpf bpf /sys/fs/bpf" if pins.is_relative_to("/sys/fs/bpf") else f"mount -t bpf bpf {pins.parent}"
    return Finding(check="bpffs", state="fail", found=f"{pins} is on {kind} ({point})", cure=cure)


def programs(pins: Path) -> Iterator[Finding]:
    """Try what the agent will do: pass the verifier, be compiled, be attached. In a network namespace of its own."""
    ground = next(parent for parent in (pins, *pins.parents) if parent.is_dir())
    place = Path(tempfile.mkdtemp(prefix="headrace-check-", dir=ground))
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as elsewhere:  # the namespace goes with the thread
            yield from elsewhere.submit(lambda: list(try_programs(place))).result()
    finally:
        shutil.rmtree(place)


def try_programs(place: Path) -> Iterator[Finding]:
    """Load every object and attach a program to the loopback device of a fresh namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        yield Finding(check="programs", state="warn", found=f"not tried: no namespace ({os.strerror(number)})")
        return
    with Netlink() as netlink:
        made = Seam(netlink).ends({})
    cure = "modprobe veth: else super-packets that cannot be cut behind outer headers are dropped"
    found = "a veth can be made, and cuts" if made else "no veth can be made, or it keeps its offloads"
    yield Finding(check="seam", state="ok" if made else "fail", found=found, cure="" if made else cure)
    with contextlib.ExitStack() as stack:
        loaded = {}
        try:
            for name in PARTS:
                opened = Object.open(OBJECTS / f"{name}.bpf.o", map_sizes=SMALL, pin_dir=place)
                loaded.update(stack.enter_context(opened.load()).programs)
        except HeadraceError as error:
            yield Finding(check="programs", state="fail", found=str(error), cure="a kernel as configured by Debian")
            return
        yield Finding(check="programs", state="ok", found=f"{len(loaded)} pass the verifier")
        slow = [name for name, program in loaded.items() if not program.info().jited_size]
        cure = "sysctl -w net.core.bpf_jit_enable=1" if slow else ""
        found = "off" if slow else "on"
        yield Finding(check="jit", state="fail" if slow else "ok", found=found, cure=cure)
        try:
            kind = attach_tc(LOOPBACK, loaded["hr_guard"], "egress", place / "try").kind
            detach(place / "try")
            yield Finding(check="tc hook", state="ok", found=kind)
        except HeadraceError as error:
            cure = "modprobe -a sch_ingress cls_bpf, or a kernel with tcx (6.6)"
            yield Finding(check="tc hook", state="fail", found=str(error), cure=cure)


def guard(config: AgentConfig, *, try_it: bool) -> Finding:
    """Whether nftables takes the guard's rules."""
    if not config.guard:
        cure = 'guard = ["tap*"]: else a tap made anew while no agent runs reaches the host'
        return Finding(check="nftables", state="warn", found="guard is off", cure=cure)
    if shutil.which("nft") is None:
        return Finding(check="nftables", state="fail", found="no nft", cure="install nftables, or set guard = []")
    if not try_it:
        return Finding(check="nftables", state="ok", found="nft is there; not tried")
    command = ["nft", "--check", "--file", "-"]
    done = subprocess.run(command, input=ruleset(config.guard), text=True, capture_output=True, check=False)
    if done.returncode:
        cure = "modprobe nf_tables, or set guard = []"
        return Finding(check="nftables", state="fail", found=done.stderr.strip().partition("\n")[0], cure=cure)
    return Finding(check="nftables", state="ok", found=f"takes the guard for {', '.join(config.guard)}")


def network(config: AgentConfig, netlink: Netlink) -> Iterator[Finding]:
    """Sysctls, tunnel endpoints and uplinks."""
    yield from multipath(netlink)
    vteps = own_vteps(netlink, config.uplinks, config.vteps)
    own = {entry.address for entry in netlink.addresses()}
    yield endpoints(vteps, own, configured=bool(config.vteps))
    yield from forwarding(netlink, ip_versions(vteps))
    if not config.uplinks:
        cure = 'uplinks = ["DEVICE"]: without one, ports of this host reach only each other'
        yield Finding(check="uplinks", state="warn", found="none configured", cure=cure)
    yield from uplinks(config, netlink)
    yield from seam(netlink)
    yield from backlog()


def uplinks(config: AgentConfig, netlink: Netlink) -> Iterator[Finding]:
    """Every device of the configuration that leads out of the host."""
    links = {link.name: link for link in netlink.links()}
    versions = ip_versions(own_vteps(netlink, config.uplinks, config.vteps))
    features = {}
    for name in links:
        with contextlib.suppress(NotFound):
            features[name] = netlink.features(name)
    networks: list[Network] = []
    try:
        networks = known_networks(config)
    except InvalidInput as error:
        yield Finding(check="state", state="fail", found=str(error), cure="correct the file")
    tunnelled = [one for one in networks if not one.segment.is_physical]
    for name in config.uplinks:
        yield from judge(name, links, hook=config.uplink_hook, features=features, versions=versions, networks=tunnelled)
    for physical, name in config.physical_networks.items():
        own = [one for one in networks if one.segment.physical_network == physical]
        yield from judge(name, links, hook=config.uplink_hook, features=features, networks=own, physical=physical)


def own_identity(config: AgentConfig) -> str:
    """The host whose certificate is here. Raises InvalidInput where there is none, or another host's."""
    if not config.controller.startswith("https:"):
        return config.host
    files = Files.at(config.certificates, "host")
    files.check()
    name = common_name(files.certificate)
    if name != config.host:
        raise InvalidInput(
            f"{files.certificate} is of host {name}, and the configuration has host = {config.host!r}; correct the"
            f" configuration, or bring the certificate that `headrace host enroll {config.host}` makes"
        )
    return name


def certificate(config: AgentConfig, now: dt.datetime) -> Finding:
    """The host's certificate, by which the controller knows it."""
    try:
        name = own_identity(config)
        end = expiry(Files.at(config.certificates, "host").certificate)
    except InvalidInput as error:
        what, _, cure = str(error).partition("; ")
        return Finding(check="certificate", state="fail", found=what, cure=cure)
    state: Literal["ok", "warn", "fail"] = "ok" if end - now > SOON else "warn" if end > now else "fail"
    cure = "" if state == "ok" else "headrace host enroll --renew"
    if state == "fail":
        cure = f"headrace host enroll {name}, where the operator's certificate is"
    return Finding(check="certificate", state=state, found=f"host {name}, until {end:%Y-%m-%d}", cure=cure)


def seam(netlink: Netlink) -> Iterator[Finding]:
    """The veth that cuts what cannot be cut behind outer headers; the agent makes it."""
    links = {link.name: link for link in netlink.links()}
    ends = ends_of(links)
    if ends is None:
        odd = NEAR in links
        cure = f"ip link delete {NEAR}; a running agent makes it anew" if odd else ""
        found = f"{NEAR} is not the agent's" if odd else f"{NEAR} is not there; the agent makes it"
        yield Finding(check=NEAR, state="warn" if odd else "ok", found=found, cure=cure)
        return
    wrong = [f"{fault.device} {fault.what} {fault.found}" for fault in faults(netlink, ends)]
    cure = "headrace host verify --repair" if wrong else ""
    found = ", ".join(wrong) if wrong else "cuts what goes in"
    yield Finding(check=NEAR, state="fail" if wrong else "ok", found=found, cure=cure)


def backlog(file: Path = BACKLOG_FILE) -> Iterator[Finding]:
    """How many segments a CPU keeps for the seam's far end; nothing where that is not for this namespace to say."""
    key = "net.core.netdev_max_backlog"
    try:
        kept = int(file.read_text())
    except (OSError, ValueError):
        return
    found = str(kept) if kept >= BACKLOG else f"{kept}; the agent makes it {BACKLOG}"
    yield Finding(check=key, state="ok", found=found)


def multipath(netlink: Netlink) -> Iterator[Finding]:
    """ECMP must choose by the outer ports, which differ from flow to flow, or a pair of hosts uses one path."""
    for family in ("ipv4", "ipv6"):
        key, value = f"net.{family}.fib_multipath_hash_policy", "absent"
        with contextlib.suppress(NotSupported):
            value = netlink.sysctl(key)
        fits = value == "1"
        cure = "" if fits else f"sysctl -w {key}=1, and the same in {SYSCTL_D}; matters with several next hops"
        yield Finding(check=key, state="ok" if fits else "warn", found=value, cure=cure)


def forwarding(netlink: Netlink, versions: list[int]) -> Iterator[Finding]:
    """The FIB is asked as from lo, which must forward for that; nothing arrives there, so the host forwards no more."""
    for version in versions:
        key = f"net.ipv{version}.conf.lo.forwarding"
        on = netlink.sysctl(key) == "1"
        yield Finding(check=key, state="ok", found="1" if on else "0; the agent sets it")


def endpoints(vteps: tuple[str, ...], own: set[str], *, configured: bool) -> Finding:
    """The host's tunnel endpoints."""
    if not vteps:
        cure = "give the uplink an address, or name one of the host's own in vteps"
        return Finding(check="vteps", state="fail", found="none", cure=cure)
    if strange := [vtep for vtep in vteps if vtep not in own]:
        found = f"{', '.join(strange)} is no address of this host"
        return Finding(check="vteps", state="fail", found=found, cure="add the address, or correct vteps")
    where = "as configured" if configured else "first of the uplinks"
    return Finding(check="vteps", state="ok", found=f"{', '.join(vteps)} ({where})")


def known_networks(config: AgentConfig) -> list[Network]:
    """The networks of the last desired state. Raises InvalidInput for a state file with mistakes."""
    state: State | None = None
    with contextlib.suppress(OSError):
        if config.state:
            state = State.of(document.read(Path(config.state).read_bytes(), config.state))
        elif desired := restore(Path(config.cache) / "desired.json"):
            state = desired.state
    return list(state.networks.values()) if state else []
