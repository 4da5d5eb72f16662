"""The bundled guests: one TOML file each in qemu-configs/, their kernels built on demand from tests/guests.

The Linux guests boot the distribution's kernels (:mod:`gdbext.qemu.linux`) with the workloads of tests/linux.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gdbext.errors import EnvironmentUnusable, UsageError
from gdbext.qemu import cache, linux, making
from gdbext.qemu.machine import ARCHITECTURES
from gdbext.rules.codes import CODES

_CHECKOUT: Final = Path(__file__).parents[2]
CONFIGS: Final = _CHECKOUT / "qemu-configs"
SOURCES: Final = _CHECKOUT / "tests" / "guests"

KERNEL, STRIPPED = "kernel.elf", "kernel-stripped.elf"
OURS, LINUX = "ours", "linux"
"""What kind of kernel a guest boots."""


@dataclass(frozen=True, slots=True)
class Guest:
    """One bundled guest; the fields are those of its file (see tests/guests/README.md)."""

    name: str
    title: str
    wrong: str
    codes: tuple[str, ...]
    arch: str
    kind: str
    style: str
    defines: tuple[str, ...]
    kernel: str
    release: str
    append: str
    workload: str
    guilty: str
    slot: str
    writer: str
    field: str
    profile: str
    cpu: str
    smp: int
    memory: str
    args: tuple[str, ...]
    until: str
    seconds: float
    simd: bool
    nmi_ms: int

    @property
    def program(self) -> str:
        """The QEMU that runs it."""
        return f"qemu-system-{self.arch}"

    @property
    def linux(self) -> linux.Kernel | None:
        """The Linux kernel it boots, if it boots one."""
        return linux.Kernel(self.kernel, self.arch, self.release) if self.kind == LINUX else None

    def command(self, kernel: Path) -> list[str]:
        """The QEMU command line that boots `kernel` as this guest."""
        line = [self.program, "-kernel", str(kernel), "-cpu", self.cpu, "-smp", str(self.smp), "-m", self.memory]
        if self.kind == LINUX:
            words = " ".join(filter(None, (self.append, f"workload={self.workload}")))
            line += ["-initrd", str(kernel.with_name(linux.INITRD)), "-append", words]
        return [*line, "-display", "none", *self.args]


# Dotted key -> (attribute, allowed type, default; no default: the key must be there).
_KEYS: Final[dict[str, tuple[str, type, Any]]] = {
    "title": ("title", str, None),
    "wrong": ("wrong", str, ""),
    "codes": ("codes", list, None),
    "arch": ("arch", str, None),
    "kind": ("kind", str, OURS),
    "style": ("style", str, ""),
    "defines": ("defines", list, []),
    "kernel": ("kernel", str, ""),
    "release": ("release", str, ""),
    "append": ("append", str, ""),
    "workload": ("workload", str, "default"),
    "guilty": ("guilty", str, ""),
    "slot": ("slot", str, ""),
    "writer": ("writer", str, ""),
    "field": ("field", str, ""),
    "profile": ("profile", str, ""),
    "qemu.cpu": ("cpu", str, "qemu64"),
    "qemu.smp": ("smp", int, 1),
    "qemu.memory": ("memory", str, "64M"),
    "qemu.args": ("args", list, []),
    "expect.until": ("until", str, None),
    "expect.seconds": ("seconds", float, 20.0),
    "watch.simd": ("simd", bool, False),
    "watch.nmi_ms": ("nmi_ms", int, 0),
}
_TYPE_NAMES: Final = {
    str: "a string",
    list: "a list of strings",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
}


def names() -> list[str]:
    """The bundled guests' names, sorted."""
    if not CONFIGS.is_dir():
        raise EnvironmentUnusable(
            "the bundled guests are not here", f"there is no {CONFIGS}", "run ctxwatch from its source checkout"
        )
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def find(name: str) -> Guest:
    """The guest `name`; raises UsageError with the nearest names, or how to boot a file, when there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        todo = f"did you mean {' or '.join(near)}?" if near else "`ctxwatch guests` lists them"
        if os.path.isfile(name):
            todo = f"a kernel of yours is booted by a QEMU command line: -- qemu-system-x86_64 -kernel {name}"
        raise UsageError(f"no bundled guest is called {name!r}", todo=todo)
    return load(CONFIGS / f"{name}.toml")


def load(path: Path) -> Guest:
    """Read one guest's file; raises UsageError naming file, key and what is allowed there."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}", str(error)) from error
    flat = _flatten(table)
    for key in flat:
        if key not in _KEYS:
            raise UsageError(f"{path}: unknown key {key}", todo=f"known keys are {', '.join(_KEYS)}")
    values = {attribute: _value(path, flat, key, kind, default) for key, (attribute, kind, default) in _KEYS.items()}
    guest = Guest(name=path.stem, **values)
    _one_of(path, "arch", guest.arch, ARCHITECTURES)
    _one_of(path, "kind", guest.kind, (OURS, LINUX))
    needed = "kernel" if guest.kind == LINUX else "style"
    if not getattr(guest, needed):
        raise UsageError(f"{path}: the key {needed} is missing", todo="give it a string")
    for code in guest.codes:
        _one_of(path, "codes", code, CODES)
    return guest


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _value(path: Path, flat: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    value = flat.get(key, default)
    if value is None:
        raise UsageError(f"{path}: the key {key} is missing", todo=f"give it {_TYPE_NAMES[kind]}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # isinstance would take True for an integer
        raise UsageError(f"{path}: {key} is {value!r}", todo=f"give it {_TYPE_NAMES[kind]}")
    return _strings(path, key, flat.get(key, default)) if kind is list else value


def _strings(path: Path, key: str, value: list[Any]) -> tuple[str, ...]:
    for item in value:
        if not isinstance(item, str):
            raise UsageError(f"{path}: {key} holds {item!r}", todo="give it a list of strings")
    return tuple(value)


def _one_of(path: Path, key: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise UsageError(f"{path}: {key} is {value!r}", todo=f"allowed: {', '.join(allowed)}")


def build(guest: Guest, *, stripped: bool = False) -> Path:
    """Build the guest's kernel unless the user's cache has it; return the ELF file (without symbols if `stripped`).

    Raises EnvironmentUnusable when it cannot be built. Safe against another process building the same.
    """
    if guest.linux is not None:
        if stripped:
            raise UsageError(f"{guest.name} has no stripped variant", todo="leave --stripped out")
        return linux.build(guest.linux) / linux.KERNEL
    directory = cache.directory("guests") / f"{guest.name}-{_fingerprint(guest)}"
    if not directory.is_dir():
        with tempfile.TemporaryDirectory(prefix=".build-", dir=cache.made("guests")) as scratch:
            _make(guest, Path(scratch) / "out")
            _install(Path(scratch), directory)
    return directory / (STRIPPED if stripped else KERNEL)


def _fingerprint(guest: Guest) -> str:
    """What the kernel is made from: its sources, its configuration, its compiler."""
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file() and path.suffix != ".md")
    return making.fingerprint((guest.arch, guest.style, guest.defines), SOURCES, sources)


def _make(guest: Guest, out: Path) -> None:
    defines = " ".join(guest.defines)
    what = f"the guest {guest.name}"
    making.make(SOURCES, what, OUT=str(out), ARCH=guest.arch, STYLE=guest.style, DEFS=defines)


def _install(scratch: Path, directory: Path) -> None:
    ready = scratch / "ready"
    ready.mkdir()
    for name in (KERNEL, STRIPPED):
        shutil.move(scratch / "out" / name, ready / name)
    making.install(ready, directory)
