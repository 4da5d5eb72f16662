"""What the probe's tests share: the tools compiled from its sources, a QEMU with the probe, a guest that runs."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gdbext.errors import EnvironmentUnusable
from gdbext.events.row import Batch
from gdbext.qemu import guests
from gdbext.qemu.machine import Machine
from gdbext.qemu.probe import ProbeBuild, build, plugin_args
from gdbext.sources.probe import ProbeSource
from gdbext.sources.ring import c_layout
from gdbext.sources.ring_file import RingFile

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile one of the C files beside this one against the probe's headers; returns the program."""
    directory = tmp_path_factory.mktemp("compiled")
    (directory / "layout.h").write_text(c_layout())
    for item in resources.files("gdbext.probe").iterdir():
        if item.name.endswith(".h"):
            (directory / item.name).write_text(item.read_text())

    def compile_(name: str, *flags: str) -> Path:
        program = directory / (Path(name).stem + "".join(flags).replace("/", "_"))
        if not program.exists():
            words = ["cc", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-pthread", *flags]
            subprocess.run([*words, f"-I{directory}", "-o", str(program), str(HERE / name)], check=True)
        return program

    return compile_


@pytest.fixture(scope="session")
def probe() -> ProbeBuild:
    """The probe for the QEMU that is installed."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("no qemu-system-x86_64 here")
    try:
        return build(Path(qemu))
    except EnvironmentUnusable as error:
        pytest.skip(str(error))


def built(name: str, directory: Path, bits: int, *defines: str) -> Path:
    """Build guest/`name`.S; QEMU's multiboot loader wants an ELF32 file for either width."""
    elf, kernel = directory / name, directory / f"{name}.elf"
    flags = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000,--build-id=none,-N,-z,noexecstack"]
    words: list[str | Path] = ["cc", "-m64", f"-DBITS={bits}", *defines, *flags, "-o", elf]
    subprocess.run([*words, HERE / "guest" / f"{name}.S"], check=True)
    subprocess.run(["objcopy", "-O", "elf32-i386", elf, kernel], check=True)
    return kernel


@dataclass
class Watched:
    """A guest under the probe. ``rows``: all that was read so far."""

    machine: Machine
    ring: RingFile
    source: ProbeSource
    parts: list[Batch] = field(default_factory=list)
    serial: list[str] = field(default_factory=list)

    def run(self, until: Callable[[], bool], seconds: float = 30.0) -> None:
        """Take events until `until` says so or QEMU ends."""
        deadline = time.monotonic() + seconds
        while True:
            rows = self.source.read(0.05)
            self.serial += self.machine.serial()
            if rows is not None:
                self.parts.append(rows)
            if rows is None or until():
                return
            assert time.monotonic() < deadline, f"not in {seconds} s; the guest said: {self.serial[-5:]}"

    def drain(self) -> None:
        """Take what is left of a guest that stands still."""
        while (rows := self.source.read(0.1)) is not None and len(rows):
            self.parts.append(rows)

    def said(self, text: str) -> bool:
        """Has the guest printed it?"""
        return any(text in line for line in self.serial)

    def done(self) -> bool:
        """Has the guest reached its end?"""
        return self.said("guest: done")

    @property
    def rows(self) -> Batch:
        """All events so far, in order."""
        return np.concatenate(self.parts)


@pytest.fixture
def watch(probe: ProbeBuild) -> Iterator[Callable[..., Watched]]:
    """Start a QEMU command line under the probe, stopped; ended with the test."""
    opened: list[Watched] = []

    def start(*words: str, halt: bool = False, build: ProbeBuild | None = None, **options: bool | int) -> Watched:
        rings: list[RingFile] = []

        def plugin(directory: Path) -> list[str]:
            rings.append(RingFile.create(directory / "ring"))
            return plugin_args(build or probe, directory / "ring", **options)  # type: ignore[arg-type]

        machine = Machine([str(probe.qemu), "-m", "64M", "-net", "none", *words], plugin=plugin)
        watched = Watched(machine, rings[0], ProbeSource(rings[0], machine.qmp, halt=halt))
        opened.append(watched)
        return watched

    yield start
    for watched in opened:
        watched.source.close()
        watched.machine.close()


@pytest.fixture
def guest() -> Callable[[str], Path]:
    """The kernel of a bundled guest."""
    return lambda name: guests.build(guests.find(name))
