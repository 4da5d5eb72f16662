"""A healthy guest under ctxwatch's probe and rules, which can be held, looked at and changed from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from gdbext.cli import feeds
from gdbext.cli.running import knowledge_of
from gdbext.errors import CtxwatchError
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.profiles import profile as profiles
from gdbext.qemu import guests, images
from gdbext.qemu.guests import Guest
from gdbext.qemu.images import Image, Symbols
from gdbext.qemu.machine import ARCHITECTURES, Machine
from gdbext.rules.codes import ERROR
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from gdbext.sources.discoveries import Discoveries
from gdbext.sources.learning import Handlers
from gdbext.sources.probe import ProbeSource
from tests.inject.stub import Stub

TICK: Final = 0.05
SILENCE: Final = 8.0
"""Seconds without an event after which a running guest is taken to hang."""
_COMPLAINT: Final = re.compile(
    r"CORRUPT|FAILED|PANIC|guest: (impossible|killed)|panic|BUG:|Oops|general protection|segfault"
)
"""What a guest prints when one of its self-checks fails, or its kernel notices."""


class Live:
    """One guest, from its start. A context manager.

    ``findings``: the rules' verdicts so far; ``complaints``: what the guest itself said is wrong; ``ended``: how the
    machine ended, "" while it runs; ``handlers``: the entry points seen; ``entries``: handler's address → how often;
    ``exits``: (address, How, to user mode) → how often; ``swaps``: (address of a swapgs, Kind of the event beside it,
    its How) → how often; ``bases``: (address, MSR) of writes of a base → how often; ``switches``: first instructions
    of thread switches seen, and their ends; ``last_switch``: event
    number of the last switch of threads or page tables; ``discoveries``: what the guest showed of itself. All addresses
    are guest virtual.

    blind: nothing is known of the kernel, neither names nor a profile.
    """

    def __init__(self, guest: Guest, simd: bool = False, nmi: bool = False, blind: bool = False) -> None:
        self.guest = guest
        self.findings: list[Finding] = []
        self.complaints: list[str] = []
        self.lines: list[str] = []
        self.ended = ""
        self.handlers = Handlers()
        self.discoveries = Discoveries()
        self.entries: Counter[int] = Counter()
        self.exits: Counter[tuple[int, int, bool]] = Counter()
        self.swaps: Counter[tuple[int, int, int]] = Counter()
        self.bases: Counter[tuple[int, int]] = Counter()
        self.switches: tuple[set[int], set[int]] = (set(), set())
        self.last_seq = 0
        self.last_switch = 0
        self._last_event = time.monotonic()
        self.bits = ARCHITECTURES[guest.arch]
        self._simd, self._nmi, self._blind = simd or guest.simd, nmi, blind
        self._stub: Stub | None = None
        self._close = contextlib.ExitStack()

    def __enter__(self) -> Live:
        with contextlib.ExitStack() as stack:
            kernel = guests.build(self.guest)
            image = None if self._blind else _image(kernel)
            self.symbols = image.symbols if image is not None else Symbols()
            argv = tuple(self.guest.command(kernel))
            feed = stack.enter_context(
                contextlib.closing(feeds.choose("probe", argv, feeds.Wishes(simd=self._simd), _silent))
            )
            self.machine = stack.enter_context(Machine(argv, gdbstub=feed.gdbstub, plugin=feed.plugin))
            source = stack.enter_context(contextlib.closing(feed.open(self.machine)))
            assert isinstance(source, ProbeSource)
            self.source = source
            self.profile = profiles.find("generic" if self._blind else self.guest.profile or "generic")
            self.knowledge = knowledge_of(self.profile.name, image, _silent)
            self.knowledge.attach(source, self.read)
            self.engine = Engine(self.knowledge.policy, guest=self)
            self._close = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stub is not None:
            self._stub.close()
        self._close.close()

    # the rules' view of the guest

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory as it is now; raises OSError."""
        for reader in (self.source.read_memory, self.machine.read_memory):
            with contextlib.suppress(OSError, CtxwatchError):
                return reader(address, length)
        raise OSError(f"{address:#x} cannot be read")

    def symbol(self, address: int) -> str | None:
        """The name of `address` as ``function+0x12``."""
        return self.symbols.name(address)

    @property
    def found_out(self) -> list[str]:
        """What was found out of the guest without being told."""
        return list(self.discoveries.lines(self.knowledge.learnt))

    # time

    def watch(self, until: Callable[[], bool], seconds: float) -> bool:
        """Let the rules see what comes, until `until` holds (True), the guest ends or `seconds` pass (False)."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.ended or time.monotonic() > deadline:
                return False
            self._take(TICK)
            if self._nmi and self.started and self.machine.running:  # without an IDT it would die of one
                self.machine.inject_nmi()
        return True

    @property
    def started(self) -> bool:
        """True once its workloads run."""
        return any("guest: start" in line for line in self.lines)

    @property
    def silent(self) -> bool:
        """True if it hangs: it is interrupted all the time otherwise."""
        return time.monotonic() - self._last_event > SILENCE

    def _take(self, timeout: float) -> int:
        """Judge what is there; how many events it was."""
        batch = self.source.read(timeout)
        ending = self.machine.ending()  # asked first: what it printed before is then all there
        for line in self.machine.serial():
            self.lines.append(line.rstrip())
            if _COMPLAINT.search(line):
                self.complaints.append(line.strip())
        if ending is not None:
            self.ended = ending.detail
        if batch is None:
            self.ended = self.ended or "QEMU ended"
            return 0
        if len(batch):
            self._note(batch)
            self.findings += self.engine.feed(self.knowledge.add_areas(batch))
        return len(batch)

    def _note(self, batch: Batch) -> None:
        self.handlers.note(batch)
        self.discoveries.feed(batch)
        self.last_seq = max(self.last_seq, int(batch["seq"].max()))
        self._last_event = time.monotonic()
        exits = batch[(batch["kind"] == Kind.EXIT) & ((batch["flags"] & (Flag.SELF | Flag.UNREADABLE)) == 0)]
        for pc, how, cs in zip(*(exits[name].tolist() for name in ("pc", "how", "cs")), strict=True):
            self.exits[pc, how, cs & 3 == 3 or how != How.IRET] += 1
        self.entries.update(batch["pc"][batch["kind"] == Kind.ENTRY].tolist())
        switches = batch["seq"][(batch["kind"] == Kind.SWITCH_IN) | (batch["kind"] == Kind.CR3)]
        self.last_switch = int(switches[-1]) if len(switches) else self.last_switch
        self._note_swaps(batch)
        bases = batch[batch["kind"] == Kind.BASE]
        self.bases.update(zip(bases["pc"].tolist(), bases["addr"].tolist(), strict=True))
        for kind, found in zip((Kind.SWITCH_OUT, Kind.SWITCH_IN), self.switches, strict=True):
            found.update(batch["pc"][batch["kind"] == kind].tolist())
        if self.symbols.slide is None:
            for row in np.flatnonzero(batch["kind"] == Kind.ENTRY):
                if self.symbols.settle(int(batch["vector"][row]), int(batch["pc"][row])):
                    break

    def _note_swaps(self, batch: Batch) -> None:
        """A swapgs belongs to the exit that follows it at once on its CPU, or to the entry before it."""
        for cpu in np.unique(batch["cpu"]):
            rows = batch[(batch["cpu"] == cpu) & np.isin(batch["kind"], (Kind.ENTRY, Kind.EXIT, Kind.SWAPGS))]
            kinds = rows["kind"]
            for index in np.flatnonzero(kinds[1:-1] == Kind.SWAPGS) + 1:
                beside = index + 1 if kinds[index + 1] == Kind.EXIT else index - 1
                if kinds[beside] != Kind.SWAPGS:
                    self.swaps[int(rows["pc"][index]), int(kinds[beside]), int(rows["how"][beside])] += 1

    @property
    def errors(self) -> list[Finding]:
        """The findings of severity error, by event."""
        return sorted((f for f in self.findings if f.severity == ERROR), key=lambda finding: finding.event)

    # changes

    @property
    def stub(self) -> Stub:
        """The guest's gdbstub; the guest must stand when it is first asked for."""
        if self._stub is None:
            self._stub = Stub(self.machine.open_gdbstub(), self.machine.arch)
        return self._stub

    def hold(self) -> Stub:
        """Stop the guest wherever it is, and take all events that were on their way."""
        self.source.pause()
        self.catch_up()
        if self._stub is not None:
            self._stub.stopped(1.0)
        return self.stub

    def catch_up(self) -> None:
        """Take all events of a guest that stands."""
        while self._take(0):
            pass

    def go(self) -> None:
        """Let the guest run again."""
        self._last_event = time.monotonic()
        self.stub.go()

    def run_to(self, address: int, wanted: Callable[[int], bool], seconds: float = 10.0) -> int | None:
        """From a standstill, run to the instruction at `address` at a time when `wanted` (given the vCPU) says so.

        The vCPU that stands there, the guest held; None, the guest held somewhere, if it does not come to that.
        """
        stub = self.stub
        deadline = time.monotonic() + seconds
        stub.breakpoint(address, True)
        try:
            while time.monotonic() < deadline and not self.ended:
                stub.go()
                cpu = None
                while cpu is None and time.monotonic() < deadline and not self.ended:
                    self._take(0)
                    cpu = stub.stopped(0.002)
                if cpu is None:
                    break
                stub.select(cpu)
                if stub.register("rip") != address:
                    continue
                if wanted(cpu):
                    return cpu
                stub.breakpoint(address, False)
                stub.step(cpu)
                stub.breakpoint(address, True)
            if not self.ended:
                self.hold()
        finally:
            stub.breakpoint(address, False)
        return None

    def physical(self) -> bytes:
        """All of the guest's RAM below 3 GiB by guest physical address."""
        dump = self.machine.directory / "ram"
        size = int(self.guest.memory.removesuffix("M")) << 20
        try:
            self.machine.qmp.execute("pmemsave", {"val": 0, "size": size, "filename": str(dump)})
            return dump.read_bytes()
        finally:
            dump.unlink(missing_ok=True)


@functools.cache
def _loaded(kernel: Path) -> tuple[Image, int | None]:
    image = images.load(kernel)
    return image, image.symbols.slide


def _image(kernel: Path) -> Image:
    """The kernel's image, read once; where KASLR has moved it is every boot's own."""
    image, slide = _loaded(kernel)
    image.symbols.slide = slide
    return image


def _silent(_: str) -> None:
    pass


def with_workload(guest: Guest, workload: str, seconds: int) -> Guest:
    """`guest` made to work long enough: a Linux guest with this workload, one of ours with more timer interrupts."""
    if guest.linux is not None:
        return dataclasses.replace(guest, workload=f"{workload} seconds={seconds}")
    return dataclasses.replace(guest, defines=(*guest.defines, f"TICKS={1000 * seconds}"))
