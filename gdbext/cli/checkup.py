"""What ``ctxwatch doctor`` looks at: each thing that is needed, whether it is here, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gdbext.errors import CtxwatchError
from gdbext.qemu import child

OK, LIMITED, MISSING = "ok", "limited", "missing"
"""Everything works; something works less well; something cannot work at all."""

_TIMEOUT: Final = 30.0
_BOOTSTRAP: Final = "run scripts/bootstrap"
_EXTENSION: Final = Path(__file__).resolve().parents[1] / "ctxwatch.py"
_SHM: Final = Path("/dev/shm")
_SHM_WANTED: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, its state, what was found, how to get what is missing ("" if nothing is)."""

    name: str
    state: str
    found: str
    todo: str = ""


def checks() -> Iterator[Check]:
    """All checks, in the order in which one depends on the other."""
    for check in _CHECKS:
        try:
            yield from check()
        except (OSError, subprocess.SubprocessError) as error:
            yield Check(check.__name__.lstrip("_"), MISSING, f"{type(error).__name__}: {error}", _BOOTSTRAP)


def _python() -> Iterator[Check]:
    yield Check("Python", OK, f"{platform.python_version()} ({sys.executable})")
    names = [_requirement(text) for text in importlib.metadata.requires("ctxwatch") or [] if "extra ==" not in text]
    missing = [name for name in names if not _version(name)]
    if missing:
        yield Check("packages", MISSING, f"not here: {', '.join(missing)}", _BOOTSTRAP)
    else:
        yield Check("packages", OK, f"all {len(names)} that are needed")


def _requirement(text: str) -> str:
    found = re.match(r"[\w.-]+", text)
    return found[0] if found else text


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gdb() -> Iterator[Check]:
    path = shutil.which("gdb")
    if path is None:
        yield Check("GDB", MISSING, "not here; the gdbstub source, the REPL and `ctx` in GDB need it", "install gdb")
        return
    said = _output(path, "-nx", "-batch", "-ex", "python import platform; print('py', platform.python_version())")
    version = _first(_output(path, "--version"), r"(\d+\.\d+\S*)\s*$")
    python = _first(said, r"^py (\S+)")
    if python is None:
        yield Check("GDB", MISSING, f"{version}, without Python", "install a GDB that has Python, as Debian's does")
        return
    yield Check("GDB", OK, f"{version} with Python {python} ({path})")
    ours = ".".join(platform.python_version_tuple()[:2])
    if python.split(".")[:2] != ours.split("."):
        found = f"this is Python {ours}, GDB's is {python}: it cannot use these packages"
        yield Check("extension", MISSING, found, _BOOTSTRAP)
        return
    said = _output(path, "-nx", "-batch", "-ex", f"source {_EXTENSION}", "-ex", "ctx status")
    lines = said.strip().splitlines()
    loads = not any("rror" in line or "ndefined" in line or "bootstrap" in line for line in lines)
    yield Check(
        "extension", OK if loads else MISSING, "loads in GDB" if loads else lines[0], "" if loads else _BOOTSTRAP
    )


def _qemu() -> Iterator[Check]:
    for arch in ("x86_64", "i386"):
        name = f"qemu-system-{arch}"
        path = shutil.which(name)
        if path is None:
            yield Check(name, MISSING, "not here", "install qemu-system-x86")
            continue
        yield Check(name, OK, f"{_first(_output(path, '--version'), r'version (.*)')} ({path})")
        yield _probe(Path(path))


def _probe(qemu: Path) -> Check:
    from gdbext.qemu import probe

    try:
        built = probe.build(qemu)
    except CtxwatchError as error:
        todo = error.todo or "use --via gdbstub, or a QEMU >= 9.2"
        return Check("  its probe", LIMITED, str(CtxwatchError(error.what, error.why)), todo)
    return Check("  its probe", OK, f"plugin API {built.api} ({built.path})")


def _tools() -> Iterator[Check]:
    for name, package in (("gcc", "gcc"), ("make", "make"), ("ld", "binutils")):
        path = shutil.which(name)
        use = "the probe and the bundled guests are built with it"
        yield Check(name, OK, path) if path else Check(name, LIMITED, f"not here; {use}", f"install {package}")
    for name, package in (("busybox", "busybox-static"), ("cpio", "cpio"), ("tmux", "tmux")):
        if shutil.which(name) is None:
            yield Check(name, LIMITED, "not here; only the tests need it", f"install {package}")


def _machine() -> Iterator[Check]:
    if Path("/dev/kvm").exists():
        yield Check("KVM", LIMITED, "here, but guests are watched under TCG: plugins see no KVM guest (untried)")
    if _SHM.is_dir():
        free = shutil.disk_usage(_SHM).free
        enough = free >= _SHM_WANTED and os.access(_SHM, os.W_OK)
        todo = "" if enough else "rings go to TMPDIR, which is slower; free some space in /dev/shm"
        yield Check("/dev/shm", OK if enough else LIMITED, f"{free >> 20} MiB free", todo)


def _output(*command: str) -> str:
    done = child.run(*command, timeout=_TIMEOUT)
    return done.stdout + done.stderr


def _first(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else None


_CHECKS: Final[tuple[Callable[[], Iterator[Check]], ...]] = (_python, _gdb, _qemu, _tools, _machine)
