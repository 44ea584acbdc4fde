"""Debian's own kernels, unpacked for QEMU: vmlinux to boot by PVH, modules with their order, an initramfs.

Nothing here needs root. Parts are fetched once, with apt's ordinary tools over a private state, into ``build/lab/``.
"""

from __future__ import annotations

import fcntl
import logging
import lzma
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import headrace
from headrace.errors import NotSupported, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

SUITES = {"6.1": "bookworm", "6.12": "bookworm-backports"}
"""Kernel series by the Debian suite whose ``linux-image-amd64`` it is."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
QEMU = ("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64")
"""QEMU that ends with the thread that started it: no orphan burns a core after a killed test run."""
BUSYBOX = "/bin/busybox"
ASSETS = Path(__file__).parent / "lab"
EXECUTABLE, DIRECTORY, CONSOLE = 0o100755, 0o040755, 0o020600


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """One unpacked kernel: ``vmlinux`` is the ELF image, ``root`` the directory above ``lib/modules``."""

    series: str
    release: str
    root: Path

    @property
    def vmlinux(self) -> Path:
        """The uncompressed image: with ``-kernel`` QEMU enters it by PVH, 6 s sooner than a bzImage under TCG."""
        return self.root / "vmlinux"

    def module_files(self, names: Sequence[str]) -> list[Path]:
        """The files to load for these modules, dependencies first; built-in ones need none.

        Raises NotSupported naming a module that this kernel does not have.
        """
        files: dict[Path, None] = {}
        for name in names:
            command = ["modprobe", "-d", str(self.root), "-S", self.release, "--show-depends", name]
            found = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
            if found.returncode:
                raise NotSupported(f"kernel {self.release} has no module {name}")
            for line in found.stdout.splitlines():
                verb, _, rest = line.partition(" ")
                if verb == "insmod":
                    files[Path(rest.split()[0])] = None
        return list(files)


def home() -> Path:
    """Where parts are kept: ``build/lab`` of the checkout, or the user's cache for an installed package."""
    checkout = Path(headrace.__file__).parents[1]
    if (checkout / "pyproject.toml").exists():
        return checkout / "build" / "lab"
    return Path.home() / ".cache" / "headrace" / "lab"


def fetch(series: str = "6.1", *, again: bool = False) -> Kernel:
    """Download and unpack a kernel, unless that was done; ``again`` asks the mirror for the newest one.

    Raises NotSupported (unknown series, a tool is missing) or Unavailable (the mirror does not answer).
    """
    if series not in SUITES:
        raise NotSupported(f"no lab kernel {series!r}; known: {', '.join(SUITES)}")
    root = home() / f"kernel-{series}"
    with locked(root):
        if again or not (root / "release").exists():
            require("apt-get", "dpkg-deb", "depmod", "modprobe", "zstd")
            fresh = root.with_suffix(root.suffix + ".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            _unpack(_download(series, fresh), fresh)
            shutil.rmtree(root, ignore_errors=True)
            fresh.rename(root)
    return Kernel(series=series, release=(root / "release").read_text().strip(), root=root)


def require(*programs: str) -> None:
    """Raise NotSupported naming the Debian package of the first program that is not installed."""
    packages = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "depmod": "kmod",
        "modprobe": "kmod",
        "dpkg-deb": "dpkg",
        "apt-get": "apt",
        "nsenter": "util-linux",
        "setpriv": "util-linux",
    }
    for name in programs:
        if shutil.which(name, path=_environment()["PATH"]) is None:
            raise NotSupported(f"{name} is not installed: apt-get install {packages.get(name, name)}")


def initramfs(kernel: Kernel, modules: Sequence[str], init: Path, files: Mapping[str, bytes] | None = None) -> bytes:
    """A root file system in memory: static busybox, the modules in ``/m`` with their ``order``, and ``init``.

    Not compressed: under TCG unpacking costs more than reading. ``files`` are executable, by path without a slash.
    """
    require("busybox")
    loads = kernel.module_files(modules)
    content = {
        "init": init.read_bytes(),
        "bin/busybox": Path(BUSYBOX).read_bytes(),
        "m/order": "".join(f"{_plain(path)}\n" for path in loads).encode(),
        **{f"m/{_plain(path)}": _module(path) for path in loads},
        **(files or {}),
    }
    folders = {str(parent) for path in content for parent in Path(path).parents if parent != Path()}
    entries = [_entry(name, DIRECTORY) for name in sorted(folders | {"dev", "proc", "sys", "tmp"})]
    entries.append(_entry("dev/console", CONSOLE, device=(5, 1)))
    entries += [_entry(name, EXECUTABLE, data) for name, data in content.items()]
    return b"".join([*entries, _entry("TRAILER!!!", 0)])


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a "newc" archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def _plain(path: Path) -> str:
    return path.name.removesuffix(".xz")


def _module(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _download(series: str, target: Path) -> Path:
    """Fetch the newest image package with a private apt state, so the host's own lists neither matter nor change."""
    state = home() / f"apt-{series}"
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    source = state / "sources.list"
    source.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {SUITES[series]} main\n")
    options = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
    }
    flags = [f"-o{key}={value}" for key, value in options.items()]
    _apt(["apt-get", "-q", *flags, "update"], target, f"package lists of {SUITES[series]}")
    depends = _apt(["apt-cache", *flags, "depends", "linux-image-amd64"], target, "")
    package = next((line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line), None)
    if package is None:
        raise Unavailable(f"{_mirror()} {SUITES[series]} has no linux-image-amd64; its lists are in {state}")
    _apt(["apt-get", "-q", *flags, "download", package], target, f"{package} (70 to 110 MB)")
    return next(target.glob("*.deb"))


def _mirror() -> str:
    """The Debian mirror that this host already uses, so that proxies and local mirrors keep working."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
        codename, _, address = line.partition(" ")
        if codename == "bookworm":
            return address.rstrip("/")
    return MIRROR


def _apt(command: Sequence[str], folder: Path, what: str) -> str:
    if what:
        log.info("download %s", what)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{command[0]} did not get {what or 'the package name'}: {reason}")
    return done.stdout


def _unpack(package: Path, root: Path) -> None:
    """Leave ``vmlinux``, ``lib/modules/RELEASE`` with its indexes and ``release`` in a directory."""
    log.info("unpack %s", package.name)
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    release = next((root / "lib" / "modules").iterdir()).name
    log.info("index the modules of %s", release)
    subprocess.run(["depmod", "-b", root, release], env=_environment(), check=True)  # the package ships no index
    log.info("extract vmlinux of %s", release)
    (root / "vmlinux").write_bytes(_vmlinux((root / "boot" / f"vmlinuz-{release}").read_bytes()))
    for leftover in (package, root / "boot", root / "usr"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    (root / "release").write_text(release + "\n")


def _vmlinux(image: bytes) -> bytes:
    """The ELF file inside a bzImage: what starts at an XZ or Zstandard magic and unpacks to one."""
    for magic, decompress in ((b"\xfd7zXZ\0", _unxz), (b"\x28\xb5\x2f\xfd", _unzstd)):
        at = image.find(magic)
        while at >= 0:
            plain = decompress(image[at:])
            if plain.startswith(b"\x7fELF"):
                return plain
            at = image.find(magic, at + 1)
    raise NotSupported("the kernel image holds no XZ or Zstandard compressed vmlinux")


def _unxz(data: bytes) -> bytes:
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""


def _unzstd(data: bytes) -> bytes:
    """What follows the frame makes zstd fail after it has written all of the frame, hence no check."""
    return subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False).stdout


def _environment() -> dict[str, str]:
    """The programs of kmod live in ``sbin``, which a plain user's PATH leaves out."""
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One process prepares a part; others wait for it."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("w") as lock:
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - started < 1:
                    log.info("wait for another process that prepares %s", root.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
                break
        yield
