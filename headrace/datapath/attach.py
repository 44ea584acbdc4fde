"""Attach programs to devices so that they outlive this process and are replaced without a gap.

A program is attached through a link pinned in a BPF filesystem; a later run finds the pin and swaps
the program in one step. Kernels before 6.6 have no tcx link: there the program is a direct-action
filter of the device's clsact qdisc, itself pinned at the same path, with a symbolic link
``<pin>_device`` beside it that says where it is. A pin's name holds no dot (the filesystem forbids it).
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from headrace.datapath.binding import Refused, check, ffi, get_pinned, info, lib, logged, pin
from headrace.datapath.libbpf import Program
from headrace.errors import NotSupported

Direction = Literal["ingress", "egress"]
Mode = Literal["native", "generic"]

ATTACH_XDP = 37
ATTACH_TCX: dict[Direction, int] = {"ingress": 46, "egress": 47}
TC_POINT: dict[Direction, int] = {"ingress": 1, "egress": 2}
XDP_FLAG: dict[Mode, int] = {"generic": 1 << 1, "native": 1 << 2}

LINK_TYPE_XDP = 6
LINK_TYPE_TCX = 11
TC_REPLACE = 1
PRIORITY = 1
MOST_PROGRAMS = 64
"""As many as one hook can have (kernel/bpf/mprog.c, BPF_MPROG_MAX)."""
HANDLE = 0x4852
"""Ours among the filters of a device ("HR"); a filter at this place is replaced or removed, others are left alone."""


class Attachment(NamedTuple):
    """Where the program pinned or linked at ``pin`` runs."""

    kind: Literal["tcx", "clsact", "xdp"]
    ifindex: int
    direction: Direction
    program_id: int
    pin: Path


def attach_tc(ifindex: int, program: Program, direction: Direction, pin: Path, *, tcx: bool = True) -> Attachment:
    """Run ``program`` on the tc hook of a device, in place of what ``pin`` had there."""
    if tcx:
        try:
            return _attach_link(ifindex, program, direction, pin, ATTACH_TCX[direction])
        except Refused as error:
            if error.errno != errno.EINVAL:  # what a kernel without tcx answers
                raise
    return _attach_clsact(ifindex, program, direction, pin)


def attach_xdp(ifindex: int, program: Program, pin: Path, mode: Mode = "native") -> Attachment:
    """Run ``program`` on the XDP hook of a device, in place of what ``pin`` had there."""
    before = attached(pin)
    if before and (before.kind, before.ifindex) == ("xdp", ifindex) and not _runs_in(ifindex, mode):
        detach(pin)  # the two modes exclude each other
    try:
        return _attach_link(ifindex, program, "ingress", pin, ATTACH_XDP, XDP_FLAG[mode])
    except Refused as error:
        if error.errno == errno.EOPNOTSUPP:
            message = f"device {ifindex} has no {mode} XDP for program {program.name}; use tc on it"
            raise NotSupported(message) from error
        raise


def attached(pin: Path) -> Attachment | None:
    """What runs through ``pin``; nothing when there is no pin, or its device is gone or has another program."""
    try:
        fd = get_pinned(pin, "attachment")
    except Refused as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    try:
        if (place := _place(pin)) is not None:
            ifindex, direction = place
            program_id = int(info(fd, "prog").id)
            return Attachment("clsact", ifindex, direction, program_id, pin) if _filter(*place) == program_id else None
        link = info(fd, "link")
        if not link.ifindex:  # what the kernel leaves when the device goes
            return None
        kind: Literal["tcx", "xdp"] = "tcx" if link.type == LINK_TYPE_TCX else "xdp"
        egress = kind == "tcx" and link.attach_type == ATTACH_TCX["egress"]
        return Attachment(kind, int(link.ifindex), "egress" if egress else "ingress", int(link.prog_id), pin)
    finally:
        os.close(fd)


def detach(pin: Path) -> bool:
    """Take the program off its device and remove the pin; false when nothing ran through it."""
    here = attached(pin)
    if here and here.kind == "clsact":
        _remove_filter(here.ifindex, here.direction)
    elif here:
        fd = get_pinned(pin, "link")
        try:
            # Another process may hold the link open; removing the pin alone would then leave it attached.
            check(lib.bpf_link_detach(fd), f"detach the link pinned at {pin}")
        finally:
            os.close(fd)
    pin.unlink(missing_ok=True)
    _place_file(pin).unlink(missing_ok=True)
    return here is not None


def foreign(here: Attachment) -> list[str]:
    """Others' programs that a packet meets before ours at the same tcx hook."""
    ids = ffi.new("__u32[]", MOST_PROGRAMS)
    size = ffi.sizeof("struct bpf_prog_query_opts")
    options = ffi.new("struct bpf_prog_query_opts *", {"sz": size, "prog_ids": ids, "prog_cnt": MOST_PROGRAMS})
    what = f"ask device {here.ifindex} for its programs"
    check(lib.bpf_prog_query_opts(here.ifindex, ATTACH_TCX[here.direction], options), what)
    running = [int(ids[number]) for number in range(int(options.prog_cnt))]
    before = running[: running.index(here.program_id)] if here.program_id in running else []
    return [f"program {number}" for number in before]


def _attach_link(
    ifindex: int, program: Program, direction: Direction, path: Path, attach_type: int, flags: int = 0
) -> Attachment:
    kind: Literal["tcx", "xdp"] = "xdp" if attach_type == ATTACH_XDP else "tcx"
    result = Attachment(kind, ifindex, direction, program.id, path)
    before = attached(path)
    if before and before._replace(program_id=program.id) == result:
        fd = get_pinned(path, "link")
        try:
            check(lib.bpf_link_update(fd, program.fd, ffi.NULL), f"replace the program of {path} by {program.name}")
        finally:
            os.close(fd)
        return result
    size = ffi.sizeof("struct bpf_link_create_opts")
    options = ffi.new("struct bpf_link_create_opts *", {"sz": size, "flags": flags})
    what = f"attach program {program.name} to device {ifindex} ({kind} {direction})"
    fd = check(lib.bpf_link_create(program.fd, ifindex, attach_type, options), what)
    try:
        _pin_over(fd, path, f"link of program {program.name}")
    finally:
        os.close(fd)
    if before and before.kind == "clsact":
        _remove_filter(before.ifindex, before.direction)
    _place_file(path).unlink(missing_ok=True)
    return result


def _attach_clsact(ifindex: int, program: Program, direction: Direction, path: Path) -> Attachment:
    before = attached(path)
    hook = _hook(ifindex, direction)
    what = f"attach program {program.name} to device {ifindex} (clsact {direction})"
    with logged():
        if (result := lib.bpf_tc_hook_create(hook)) != -errno.EEXIST:
            check(result, what)
    with logged():
        check(lib.bpf_tc_attach(hook, _options(prog_fd=program.fd, flags=TC_REPLACE)), what)
    if before and (before.kind, before.ifindex, before.direction) != ("clsact", ifindex, direction):
        detach(path)
    # The place first: a run that dies in between leaves a link to a filter, and the next one replaces it.
    place, fresh = _place_file(path), _fresh(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(f"{ifindex}/{direction}")
    fresh.rename(place)
    _pin_over(program.fd, path, f"program {program.name}")
    return Attachment("clsact", ifindex, direction, program.id, path)


def _pin_over(fd: int, path: Path, what: str) -> None:
    """Pin in place of what is pinned at ``path``, at no moment without either."""
    fresh = _fresh(path)
    fresh.unlink(missing_ok=True)
    pin(fd, fresh, what)
    fresh.rename(path)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}_fresh")


def _place_file(path: Path) -> Path:
    return path.with_name(f"{path.name}_device")


def _place(path: Path) -> tuple[int, Direction] | None:
    with contextlib.suppress(FileNotFoundError):
        ifindex, direction = _place_file(path).readlink().parts
        return int(ifindex), "egress" if direction == "egress" else "ingress"
    return None


def _runs_in(ifindex: int, mode: Mode) -> bool:
    answer = ffi.new("struct bpf_xdp_query_opts *", {"sz": ffi.sizeof("struct bpf_xdp_query_opts")})
    check(lib.bpf_xdp_query(ifindex, 0, answer), f"ask device {ifindex} for its XDP program")
    return bool(answer.skb_prog_id if mode == "generic" else answer.drv_prog_id)


def _hook(ifindex: int, direction: Direction) -> Any:
    size = ffi.sizeof("struct bpf_tc_hook")
    return ffi.new("struct bpf_tc_hook *", {"sz": size, "ifindex": ifindex, "attach_point": TC_POINT[direction]})


def _options(*, prog_fd: int = 0, flags: int = 0) -> Any:
    size = ffi.sizeof("struct bpf_tc_opts")
    fields = {"sz": size, "prog_fd": prog_fd, "flags": flags, "handle": HANDLE, "priority": PRIORITY}
    return ffi.new("struct bpf_tc_opts *", fields)


def _filter(ifindex: int, direction: Direction) -> int | None:
    """Id of the program our filter on a device has."""
    options = _options()
    with logged():
        if (result := lib.bpf_tc_query(_hook(ifindex, direction), options)) in {
            -errno.ENOENT,
            -errno.ENODEV,
            -errno.EINVAL,
        }:
            return None
        check(result, f"ask device {ifindex} for its filter ({direction})")
    return int(options.prog_id)


def _remove_filter(ifindex: int, direction: Direction) -> None:
    """Remove our filter; the qdisc stays, since others may have filters in it and an empty one costs nothing."""
    with logged():
        result = lib.bpf_tc_detach(_hook(ifindex, direction), _options())
        if result not in {-errno.ENOENT, -errno.ENODEV}:
            check(result, f"remove the filter of device {ifindex} ({direction})")
