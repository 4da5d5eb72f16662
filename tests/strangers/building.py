"""The strangers: kernels in other people's manners, each with switches that break it. Built from source, on demand."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
COMPILE = ("-c", "-g", "-ffreestanding", "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra")
LINK = ("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096")


@dataclass(frozen=True)
class Bug:
    """A switch of a stranger: `codes` are the findings that may come first, `field` is among those it names."""

    codes: tuple[str, ...]
    field: str = ""
    look: str = ""
    """What the advice must say."""
    open: str = ""
    """Why it is not named yet, if it is not."""
    options: tuple[str, ...] = ()
    """What `ctxwatch run` needs to be told to see it."""


@dataclass(frozen=True)
class Stranger:
    """One kernel: how it is built and started, and what its switches break."""

    name: str
    title: str
    qemu: tuple[str, ...]
    over: str
    """What it prints when it has run long enough."""
    cc: str
    cflags: tuple[str, ...]
    only: Mapping[str, Sequence[str]]
    """Flags for one source alone, or for one source of one compiler ("gcc kernel.c")."""
    sources: tuple[str, ...]
    script: str
    elf32: bool
    """Whether the 64-bit kernel is put into a 32-bit ELF file, as a Multiboot loader wants it."""
    bugs: Mapping[str, Bug]

    @property
    def missing(self) -> str | None:
        """The tool that is not on this machine, if one is."""
        needed = [self.cc, self.qemu[0], "objcopy"]
        return next((tool for tool in needed if shutil.which(tool) is None), None)


def names() -> list[str]:
    return sorted(path.parent.name for path in HERE.glob("*/stranger.toml"))


def find(name: str) -> Stranger:
    data = tomllib.loads((HERE / name / "stranger.toml").read_text())
    bugs = {
        key: Bug(
            tuple(bug["codes"]),
            bug.get("field", ""),
            bug.get("look", ""),
            bug.get("open", ""),
            tuple(bug.get("options", ())),
        )
        for key, bug in data["bugs"].items()
    }
    return Stranger(
        name=name,
        title=data["title"],
        qemu=tuple(data["qemu"]),
        over=data["over"],
        cc=_compiler(data["cc"]),
        cflags=tuple(data["cflags"]),
        only=data.get("only", {}),
        sources=tuple(data["sources"]),
        script=data["script"],
        elf32=data.get("elf32", False),
        bugs=bugs,
    )


def _compiler(choice: str | list[str]) -> str:
    """The compiler, or of several the first that is on this machine."""
    names = [choice] if isinstance(choice, str) else choice
    return next((name for name in names if shutil.which(name)), names[-1])


def build(stranger: Stranger, out: Path, bug: str | None = None) -> Path:
    """The stripped kernel, in directory `out`; the one with symbols is `kernel.elf` beside it."""
    here = HERE / stranger.name
    define = [f"-DBUG_{bug}"] if bug else []
    objects = []
    for source in stranger.sources:
        made = out / (Path(source).stem + ".o")
        flags = [*COMPILE, *stranger.cflags, *stranger.only.get(source, ()), *define]
        flags += stranger.only.get(f"{stranger.cc} {source}", ())
        _run([stranger.cc, *flags, "-o", str(made), str(here / source)])
        objects.append(str(made))
    machine = [flag for flag in stranger.cflags if flag in ("-m32", "-m64")]
    kernel = out / "kernel.elf"
    _run(["gcc", *machine, *LINK, "-T", str(here / stranger.script), "-o", str(kernel), *objects])
    stripped = out / "kernel"
    container = ["-O", "elf32-i386"] if stranger.elf32 else []
    _run(["objcopy", "--strip-all", *container, str(kernel), str(stripped)])
    return stripped


def command(stranger: Stranger, kernel: Path) -> list[str]:
    """The QEMU command line that boots `kernel`."""
    return [*stranger.qemu, "-display", "none", "-serial", "stdio", "-kernel", str(kernel)]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
