"""Choosing and opening the source of events for a machine of ours: the probe, or GDB's breakpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gdbext.errors import EnvironmentUnusable, GuestFailed
from gdbext.qemu.command import Options
from gdbext.qemu.machine import COUNTED_TIME, Machine, which
from gdbext.sources.base import Source

if TYPE_CHECKING:
    from gdbext.qemu.probe import ProbeBuild
    from gdbext.sources.ring_file import RingFile


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the source is to do besides delivering events.

    ``simd``: capture SIMD state where the source can; ``insist``: or fail; ``stores``: look at every store of kernel
    code, or fail; ``kernel``: the guest's ELF file;
    ``retime``: the guest's clock may be changed so that time does not pass for it while a debugger is at work.
    """

    halt: bool = False
    simd: bool = False
    stores: bool = False
    insist: bool = False
    kernel: Path | None = None
    retime: bool = False


class Feed(Protocol):
    """One way of watching a machine."""

    name: str
    gdbstub: bool
    """Whether the machine must open its gdbstub for us."""
    plugin_api: int | None
    slowdown: float
    """How much longer than unwatched a guest may take, generously."""
    silence: float
    """Seconds without an interrupt after which a guest that is interrupted all the time is taken to hang."""

    def plugin(self, directory: Path) -> Sequence[str]:
        """The words to add to QEMU's command line; `directory` is the machine's private one."""

    def blame(self) -> None:
        """QEMU did not start: raise why, if that was this way of watching."""

    def open(self, machine: Machine) -> Source:
        """Begin to watch, and let the machine run."""

    def close(self) -> None:
        """Let go of everything, the source included; idempotent."""


class GdbstubFeed:
    """Breakpoints set by GDB, through the gdbstub that the machine opens for it."""

    name = "gdbstub"
    gdbstub = True
    plugin_api: int | None = None
    slowdown = 15.0
    silence = 20.0

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes

    def plugin(self, directory: Path) -> Sequence[str]:
        """A clock that counts instructions, if that is allowed."""
        return ("-icount", COUNTED_TIME) if self._wishes.retime else ()

    def blame(self) -> None:
        """It was not."""

    def open(self, machine: Machine) -> Source:
        """Start GDB, connect it, and let it continue the guest."""
        from gdbext.sources.gdbstub import GdbstubSource

        return GdbstubSource(str(machine.gdb), kernel=self._wishes.kernel, arch=machine.arch, halt=self._wishes.halt)

    def close(self) -> None:
        """Nothing is held besides the source."""


class ProbeFeed:
    """The plugin inside QEMU, its events through a ring in shared memory."""

    name = "probe"
    gdbstub = False
    slowdown = 3.0
    silence = 5.0

    def __init__(self, build: ProbeBuild, wishes: Wishes) -> None:
        self._build = build
        self._wishes = wishes
        self._ring: RingFile | None = None
        self.plugin_api: int | None = build.api

    def plugin(self, directory: Path) -> Sequence[str]:
        """Make the ring and load the probe with it."""
        from gdbext.qemu.probe import plugin_args
        from gdbext.sources.ring_file import RingFile

        path = directory / "ring"
        self._ring = RingFile.create(path)
        wishes = self._wishes
        return plugin_args(self._build, path, simd=wishes.simd, halt=wishes.halt, watch=True, stores=wishes.stores)

    def blame(self) -> None:
        """The probe refuses a ring that it cannot use, and QEMU says no more than that it refused."""
        from gdbext.sources.ring import State

        if self._ring is not None and int(self._ring.header["state"][0]) == State.FAILED:
            self._ring.map_rings()

    def open(self, machine: Machine) -> Source:
        """Join the ring that QEMU has laid out, and let the guest run."""
        from gdbext.sources.probe import ProbeSource

        assert self._ring is not None, "the machine was started without this feed's words"
        source = ProbeSource(self._ring, machine.qmp, halt=self._wishes.halt)
        all(map(source.tell_tables, range(len(self._ring.control))))  # of a machine that begins with a snapshot
        machine.cont()
        return source

    def close(self) -> None:
        """Let go of the ring, also where QEMU never came to use it."""
        if self._ring is not None:
            self._ring.close()


def start(argv: Sequence[str], feed: Feed) -> Machine:
    """Start QEMU with what `feed` adds; raises UsageError, EnvironmentUnusable or GuestFailed."""
    try:
        return Machine(argv, gdbstub=feed.gdbstub, plugin=feed.plugin)
    except GuestFailed:
        feed.blame()
        raise


def choose(via: str, argv: Sequence[str], wishes: Wishes, note: Callable[[str], None]) -> Feed:
    """The feed for `via` (probe, gdbstub, auto) and the QEMU command line `argv`.

    With auto, a probe that cannot be had is told through `note` and the gdbstub taken instead; asked for by name it
    is refused with EnvironmentUnusable.
    """
    if via == "gdbstub":
        return _gdbstub(wishes, note)
    from gdbext.qemu import probe

    program = which(argv[0])
    try:
        return ProbeFeed(probe.build(program, accelerator=Options(argv).accelerator), wishes)
    except EnvironmentUnusable as error:
        if via == "probe":
            raise EnvironmentUnusable(error.what, error.why, error.todo or "use --via gdbstub") from error
        feed = _gdbstub(wishes, note)
        note(f"watching through GDB's breakpoints, which takes milliseconds an event: {error}")
        return feed


def _gdbstub(wishes: Wishes, note: Callable[[str], None]) -> GdbstubFeed:
    if wishes.stores:
        raise EnvironmentUnusable("--stores all needs the probe", "GDB's breakpoints see no stores", "leave it out")
    if wishes.insist:
        raise EnvironmentUnusable("--simd needs the probe", "GDB's breakpoints capture no SIMD state", "leave it out")
    if wishes.simd:
        note("SIMD state is not compared: GDB's breakpoints do not capture it")
    return GdbstubFeed(wishes)
