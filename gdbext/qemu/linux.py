"""Linux guests: the distribution's kernels, fetched through apt and kept; an initial RAM file system of our workloads.

Nothing of a kernel is committed: image, configuration and busybox lie in the user's cache, one directory a package.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gdbext.qemu import apt, cache, cpio, making

SOURCES: Final = Path(__file__).parents[2] / "tests" / "linux"
INIT: Final = "init"
"""The first program, a script."""

BACKPORTS: Final = "backports"
"""A release's name: the running release's backports."""

KERNEL, INITRD, CONFIG, BUSYBOX, VERSION = "vmlinuz", "initrd", "config", "busybox", "version"
_PARTS: Final = (
    ("linux-binary-", r"\./(boot/vmlinuz-.*|usr/lib/modules/[^/]+/vmlinuz)", KERNEL),
    ("linux-base-", r"\./(boot/config-.*|usr/lib/modules/[^/]+/config)", CONFIG),
)
"""Where the image's package is split: what begins the name of the one that holds a file, the file, and our name."""
_PROGRAMS: Final = ("workloads", "workloads32")
_DEBIAN_ARCH: Final = {"x86_64": "amd64", "i386": "i386"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Which kernel: Debian's (meta-)package, QEMU's name of the architecture, the release ("": the running one)."""

    package: str
    arch: str
    release: str = ""

    @property
    def directory(self) -> Path:
        """Where it is kept once it is fetched."""
        name = f"{self.package}-{_DEBIAN_ARCH[self.arch]}-{self.release or apt.running_release()}"
        return cache.directory("linux") / name


def fetch(kernel: Kernel) -> Path:
    """The directory with the kernel's image, configuration and busybox, fetched unless the cache has it.

    Raises EnvironmentUnusable where it cannot be had. Safe against another process fetching the same.
    """
    if not kernel.directory.is_dir():
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache.made("linux")) as scratch:
            ready = Path(scratch) / "ready"
            ready.mkdir()
            _download(kernel, Path(scratch), ready)
            making.install(ready, kernel.directory)
    return kernel.directory


def _download(kernel: Kernel, scratch: Path, ready: Path) -> None:
    backports = kernel.release == BACKPORTS
    release = None if backports or not kernel.release else kernel.release
    source = apt.Apt(scratch / "apt", _DEBIAN_ARCH[kernel.arch], release, backports=backports)
    package = source.candidate(kernel.package, backports=backports)
    image = source.dependency(package, "linux-image-") or package
    wanted: dict[apt.Package, dict[str, Path]] = {}
    for prefix, pattern, name in _PARTS:
        wanted.setdefault(source.dependency(image, prefix) or image, {})[pattern] = ready / name
    for part, files in wanted.items():
        apt.extract(source.download(part, scratch), files)
    busybox = source.download(source.candidate("busybox-static"), scratch)
    apt.extract(busybox, {r"\./(usr/)?bin/busybox": ready / BUSYBOX})
    (ready / VERSION).write_text(f"{image.name} {image.version}\n", "utf-8")


def build(kernel: Kernel) -> Path:
    """The directory with the kernel and, beside it, the file system to boot it with.

    Raises EnvironmentUnusable where the kernel cannot be had or the workloads cannot be built.
    """
    fetched = fetch(kernel)
    directory = fetched.with_name(f"{fetched.name}-{_fingerprint(fetched, kernel.arch)}")
    if not directory.is_dir():
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache.made("linux")) as scratch:
            out, ready = Path(scratch) / "out", Path(scratch) / "ready"
            making.make(SOURCES, "the programs of the Linux guests", OUT=str(out), ARCH=kernel.arch)
            ready.mkdir()
            (ready / INITRD).write_bytes(_file_system(out, fetched / BUSYBOX))
            os.link(fetched / KERNEL, ready / KERNEL)
            making.install(ready, directory)
    return directory


def _file_system(programs: Path, busybox: Path) -> bytes:
    entries = [cpio.directory("bin"), cpio.directory("dev"), cpio.character_device("dev/console", 5, 1)]
    entries += [cpio.character_device("dev/null", 1, 3), cpio.character_device("dev/zero", 1, 5)]
    entries.append(cpio.program("bin/busybox", busybox.read_bytes()))
    entries += [
        cpio.program(f"bin/{name}", (programs / name).read_bytes()) for name in _PROGRAMS if (programs / name).exists()
    ]
    entries.append(cpio.program(INIT, (SOURCES / INIT).read_bytes()))
    return cpio.archive(entries)


def _fingerprint(fetched: Path, arch: str) -> str:
    """What the file system and the choice of kernel are made from."""
    sources = (SOURCES / "Makefile", SOURCES / INIT, *sorted((SOURCES / "workloads").iterdir()))
    return making.fingerprint((arch, (fetched / VERSION).read_text("utf-8")), SOURCES, sources)
