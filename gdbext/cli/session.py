"""One watched run, whatever the source: source → batch → engine → findings → view, until there is a reason to end."""

from __future__ import annotations

import contextlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from gdbext.cli import feeds
from gdbext.cli.feeds import Feed
from gdbext.cli.liveguest import LiveGuest
from gdbext.cli.pulse import Nmis, Pulse
from gdbext.errors import CtxwatchError, GuestFailed
from gdbext.events.row import Batch, Flag, Kind, empty
from gdbext.qemu.images import Image
from gdbext.qemu.machine import Ending, Machine
from gdbext.report.document import QemuFacts, RunReport, not_all_seen
from gdbext.rules.codes import ERROR
from gdbext.rules.engine import Counts, Engine
from gdbext.rules.finding import Finding
from gdbext.rules.guest import GuestView
from gdbext.sources.base import Source
from gdbext.sources.discoveries import Discoveries
from gdbext.sources.knowledge import Knowledge
from gdbext.sources.probe import ProbeSource, begins_anew

if TYPE_CHECKING:
    from gdbext.recording.header import Header
    from gdbext.recording.writer import Recorder

_DYING: Final = 2.0
"""Seconds QEMU may take to be gone after what it was asked has failed."""
_LEAVING: Final = 5.0
"""Seconds its process may take to be gone after the source has seen its end: files close before a process ends."""
TICK: Final = 0.1
"""Seconds the source may keep us waiting while serial lines, deadlines and NMIs are due."""

_PART: Final = 1024
"""Events judged at once where the run ends with a finding."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is watched.

    ``until``: serial text that ends the run; ``seconds``: what an unwatched run may need, if that is known;
    ``ticks``: a timer interrupts it all the time, so that a time without interrupts means it hangs.
    """

    name: str
    argv: tuple[str, ...]
    image: Image | None = None
    until: str = ""
    seconds: float | None = None
    nmi_ms: int = 0
    ticks: bool = False
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """How it is watched.

    ``learn``: entries that a halted guest runs on, through the probe, to show who wrote what was found;
    ``timeout``: seconds, None for the subject's own; ``max_findings``: 0 for all; ``record``: the recording to make.
    """

    halt: bool = False
    hold: bool = False
    learn: int = 0
    timeout: float | None = None
    max_findings: int = 0
    codes: frozenset[str] | None = None
    record: Path | None = None


class View(Protocol):
    """Shows a run while it goes on."""

    def note(self, text: str) -> None:
        """Something a person should know, one line."""

    def detail(self, text: str) -> None:
        """Something only --verbose shows, one line."""

    def serial(self, line: str) -> None:
        """The guest printed `line` (raw)."""

    def finding(self, finding: Finding) -> None:
        """The first finding of its kind."""

    def progress(self, counts: Counts, seconds: float) -> None:
        """Called now and then."""

    def hold(self, invitation: str) -> None:
        """The guest is halted; show how to look at it and return when the person has."""


@dataclass(slots=True)
class Outcome:
    """How a run went. ``failure``: what the guest or QEMU failed to do, or that events were lost; it counts only where
    nothing was found.
    ``interrupted``: the signal that ended it, or 0."""

    report: RunReport
    failure: GuestFailed | None = None
    interrupted: int = 0

    @property
    def status(self) -> int:
        """The exit status of the contract; 130 after a Ctrl-C, 143 after a SIGTERM."""
        if self.interrupted:
            return 128 + self.interrupted
        if self.report.has_errors:
            return 1
        return self.failure.status if self.failure is not None else 0


def watch(subject: Subject, knowledge: Knowledge, options: Options, feed: Feed, view: View) -> Outcome:
    """Boot `subject`, watch it through `feed` to its end, and leave nothing behind.

    Raises UsageError, EnvironmentUnusable or GuestFailed where it cannot begin.
    """
    with (
        contextlib.closing(feed),
        feeds.start(subject.argv, feed) as machine,
    ):
        view.detail(f"added to the QEMU command line: {shlex.join(machine.launch.added)}")
        with contextlib.closing(_open(feed, machine)) as source, contextlib.ExitStack() as stack:
            guest: GuestView = LiveGuest(machine, source, subject.image)
            knowledge.attach(source, guest.read, may_wait=not options.halt)
            recorder = None
            if options.record is not None:
                from gdbext.recording.writer import Recorder

                header = _header(subject, knowledge, options, feed, machine)
                recorder = stack.enter_context(Recorder(options.record, header, guest, view.note))
                guest = recorder.guest
            engine = Engine(knowledge.policy, codes=options.codes, guest=guest)
            return _Run(subject, knowledge, options, feed, view, machine, source, engine, recorder).run()


def _open(feed: Feed, machine: Machine) -> Source:
    """The source, or what became of QEMU meanwhile: that is then why it cannot be had."""
    try:
        return feed.open(machine)
    except CtxwatchError:
        ending = machine.ending(_DYING)
        if ending is None:
            raise
        raise GuestFailed(ending.detail) from None


def _header(subject: Subject, knowledge: Knowledge, options: Options, feed: Feed, machine: Machine) -> Header:
    from gdbext.recording.header import Header

    identity = {"command": shlex.join(subject.argv)}
    if subject.image is not None:
        identity |= {"kernel": str(subject.image.path), "sha256": subject.image.digest}
    return Header(
        guest=subject.name,
        source=feed.name,
        qemu=asdict(_qemu_facts(machine, feed)),
        identity=identity,
        profile=knowledge.name,
        policy=knowledge.policy,
        codes=options.codes,
        started=time.time(),
    )


def _qemu_facts(machine: Machine, feed: Feed) -> QemuFacts:
    return QemuFacts(machine.version, machine.accelerator, feed.plugin_api)


@dataclass(slots=True)
class _Run:
    """A run under way."""

    subject: Subject
    knowledge: Knowledge
    options: Options
    feed: Feed
    view: View
    machine: Machine
    source: Source
    engine: Engine
    recorder: Recorder | None
    started: float = field(default_factory=time.monotonic)
    interrupted: int = 0
    """The signal that ends it."""
    halted: bool = False
    halted_cpu: int = 0
    learning: bool = False
    """It was halted and runs on."""
    seen: bool = False
    """``until`` was printed."""
    ended: bool = False
    """The source has no more events."""
    died: bool = False
    last_seq: int = 0
    last_time: int = 0
    """Of the youngest event judged: nanoseconds of the host's monotonic clock."""
    discoveries: Discoveries = field(default_factory=Discoveries)
    pulse: Pulse = field(init=False)
    nmis: Nmis = field(init=False)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.feed.silence)
        self.nmis = Nmis(self.machine, self.subject.nmi_ms)

    def run(self) -> Outcome:
        with _on_interrupt(self._interrupt):
            while not self._over():
                self._step(self._tick)
            if self.halted or not self._enough:
                self._drain()
            if self.halted:
                self._halted()
                self._learn()
        ending = self.machine.ending(_LEAVING if self.ended else 0.0)
        if ending is not None and ending.died and not self.died and not self._enough:
            self._judge(self._death())
        if ending is not None and ending.how == "restart":
            self.view.note(f"the run ends here: {ending.detail}")
        tell = self.view.note if self.subject.unknown else self.view.detail
        for line in self.discoveries.lines(self.knowledge.learnt):
            tell(f"found out: {line}")
        counts = self.engine.counts
        if not (self.interrupted or self.engine.findings or counts.entries or counts.exits):
            self.view.note("no interrupt, exception or system call was seen: nothing was checked")
        report = self._report()
        if self.recorder is not None:
            self.recorder.close(report.document())
        return Outcome(report, self._failure(ending), self.interrupted)

    def _halted(self) -> None:
        """Say where the guest stands; let a person look at it with a debugger if there is one to ask."""
        rip = self.machine.instruction_pointer(self.halted_cpu)
        self.view.note(f"halted: CPU {self.halted_cpu} at {self._name(rip)}")
        if self.options.hold and self.machine.gdb is None:
            socket = self.machine.open_gdbstub()
            kernel = f" {self.subject.image.path}" if self.subject.image is not None else ""
            self.view.hold(f"gdb{kernel} -ex 'target remote {socket}'")

    def _learn(self) -> None:
        """Let a halted guest run on until the cause of what it was halted for says more; what else is found meanwhile
        is counted alone."""
        if not self.options.learn or not isinstance(self.source, ProbeSource):
            return
        finding = self.engine.findings[0]
        told, last = finding.cause, self.engine.counts.entries + self.options.learn
        self.halted, self.learning = False, True
        self.options = replace(self.options, halt=False, max_findings=0)
        self.view.note("letting it run on, to see who wrote what came back")
        self.machine.cont()
        while finding.cause == told and self.engine.counts.entries < last and not self._over():
            self._step(self._tick)

    def _name(self, address: int) -> str:
        name = self.subject.image.symbols.name(address) if self.subject.image is not None else None
        return f"{name} ({address:#x})" if name else f"{address:#x}"

    def _interrupt(self, signum: int) -> None:
        self.interrupted = signum

    def _over(self) -> bool:
        limit = self._limit
        return (
            self.interrupted > 0
            or self.halted
            or self.seen
            or self.ended
            or self.machine.ending() is not None
            or self._hangs
            or (limit is not None and time.monotonic() - self.started > limit)
            or self._enough
        )

    @property
    def _enough(self) -> bool:
        """As much was found as was asked for; what comes after is not looked at."""
        return 0 < self.options.max_findings <= len(self.engine.findings)

    @property
    def _hangs(self) -> bool:
        return self.subject.ticks and self.pulse.stopped

    @property
    def _limit(self) -> float | None:
        if self.options.timeout is not None:
            return self.options.timeout
        return self.subject.seconds * self.feed.slowdown if self.subject.seconds is not None else None

    @property
    def _tick(self) -> float:
        """Seconds for one look at the source; it may take as long when rows are to gather."""
        return min(TICK, self.subject.nmi_ms / 1000) if self.subject.nmi_ms else TICK

    def _step(self, timeout: float) -> bool:
        """Take what is there; False if nothing was."""
        batch = self._read(timeout)
        if batch is None:
            self.ended = True
        elif len(batch):
            size = _PART if self.options.max_findings else len(batch)
            for start in range(0, len(batch), size):
                self._judge(batch[start : start + size])
                if self._enough:
                    break
            self.pulse.feed(batch)
        self._show_serial()
        self.nmis.inject(self.engine.counts.entries)
        self.view.progress(self.engine.counts, time.monotonic() - self.started)
        return batch is not None and len(batch) > 0

    def _read(self, timeout: float) -> Batch | None:
        """What the source has; what it fails of is no news if QEMU's end is why."""
        try:
            return self.source.read(timeout)
        except CtxwatchError:
            if self.machine.ending(_DYING) is None:
                raise
            return None

    def _judge(self, batch: Batch) -> None:
        self._settle(batch)
        self.discoveries.feed(batch)
        rows = self.knowledge.add_areas(batch)
        found = self.engine.feed(rows)
        self.knowledge.follow(self.engine.wanted)
        if self.recorder is not None:
            self.recorder.write(rows)
        self.last_seq = max(self.last_seq, int(batch["seq"].max()))
        self.last_time = max(self.last_time, int(batch["time"].max()))
        self.died = self.died or bool((batch["kind"] == Kind.DIED).any())
        if anew := begins_anew(batch):
            self.view.note(anew)
        errors = [finding for finding in found if finding.severity == ERROR] if self.options.halt else []
        if errors and not self.halted:
            self._halt(batch, errors)
        elif not self.halted:  # a guest that is halted has let go of all that waited
            for row in _waiting(batch):
                self.source.release(int(batch["cpu"][row]), False)
        for finding in found if not self.learning else ():
            self.view.finding(finding)

    def _halt(self, batch: Batch, errors: Sequence[Finding]) -> None:
        """Stop the guest where the first of `errors` was seen: on the wrong context's first instruction if it waits."""
        self.halted = True
        guilty = {int(finding.row["seq"][0]) for finding in errors if finding.row is not None}
        standing = [row for row in _waiting(batch) if int(batch["seq"][row]) in guilty]
        if standing:
            self.halted_cpu = int(batch["cpu"][standing[0]])
            self.source.release(self.halted_cpu, True)
            return
        self.halted_cpu = errors[0].cpu
        self._pause()

    def _pause(self) -> None:
        """Stop the guest wherever it is."""
        with contextlib.suppress(CtxwatchError):  # it may have ended
            self.source.pause() if isinstance(self.source, ProbeSource) else self.machine.stop()

    def _settle(self, batch: Batch) -> None:
        """Find out by how much KASLR has moved the kernel, if it may have."""
        symbols = self.subject.image.symbols if self.subject.image is not None else None
        if symbols is None or symbols.slide is not None:
            return
        for row in np.flatnonzero(batch["kind"] == Kind.ENTRY):
            if symbols.settle(int(batch["vector"][row]), int(batch["pc"][row])):
                self.view.detail(f"the kernel is {symbols.slide or 0:#x} above where it was linked")
                return

    def _show_serial(self) -> None:
        for line in self.machine.serial():
            self.view.serial(line)
            self.seen = self.seen or bool(self.subject.until and self.subject.until in line)
        self.seen = self.seen or bool(self.subject.until and self.subject.until in self.machine.console.partial)

    def _drain(self) -> None:
        """Stop the guest, if it lets itself be stopped, and take what is still on its way."""
        end = time.monotonic_ns()
        if not self.options.halt:  # else it stands in each doubtful exit until we have spoken, and cannot stop
            self._pause()
        deadline = time.monotonic() + 5
        while not self.ended and time.monotonic() < deadline and self._step(TICK) and self.last_time < end:
            pass

    def _death(self) -> Batch:
        row = empty(1)
        row["seq"], row["time"], row["kind"] = self.last_seq + 1, time.monotonic_ns(), Kind.DIED
        return row

    def _failure(self, ending: Ending | None) -> GuestFailed | None:
        """What of that which was asked did not come about: the guest's part first, then that all of it was seen."""
        return self._went_wrong(ending) or not_all_seen(self.source.lost)

    def _went_wrong(self, ending: Ending | None) -> GuestFailed | None:
        if self.interrupted or self.halted or self.seen:
            return None
        if ending is not None and ending.how in ("exit", "killed"):
            return GuestFailed(ending.detail)
        silence = f"no interrupt came for {self.pulse.silence:.0f} s"
        if self.subject.until and not self._enough:
            how = f"{time.monotonic() - self.started:.0f} s have passed"
            if self._hangs:
                how = f"it hangs: {silence}"
            if ending is not None:
                how = ending.detail
            return GuestFailed(f"the guest never printed {self.subject.until!r}", how, "give it more with --timeout")
        if self._hangs and ending is None and not self._enough:
            return GuestFailed("the guest hangs", silence)
        if self.ended and ending is None:
            return GuestFailed("the source of events ended before the guest did")
        return None

    def _report(self) -> RunReport:
        return RunReport(
            guest=self.subject.name,
            source=self.feed.name,
            qemu=_qemu_facts(self.machine, self.feed),
            counts=self.engine.counts,
            lost=self.source.lost,
            seconds=time.monotonic() - self.started,
            findings=self.engine.findings,
        )


def _waiting(batch: Batch) -> list[int]:
    """Indices of the rows in which a vCPU stands."""
    return [int(row) for row in np.flatnonzero(batch["flags"] & Flag.WAITING)]


@contextlib.contextmanager
def _on_interrupt(action: Callable[[int], None]) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run in good order; another one interrupts whatever is going on."""

    def handle(signum: int, _frame: FrameType | None) -> None:
        restore()
        action(signum)

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
