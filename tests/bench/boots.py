"""A Linux boot with its workload, timed in several ways of watching it.

The time is that from the guest's first instruction to the line with which its workload ends, when it comes out of the
serial port: a thread listens to it, for who watches is busy and reads it later. Beside it stands the processor time
that QEMU's process took until then: what other programs on the machine do disturbs it less, and it leaves out how long
a vCPU waited for its reader.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from gdbext.cli import feeds, running, session
from gdbext.errors import GuestFailed
from gdbext.events.row import Batch, Kind
from gdbext.qemu import guests, images, probe
from gdbext.qemu.console import Console
from gdbext.qemu.guests import Guest
from gdbext.qemu.machine import Machine, which
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding
from gdbext.sources.base import Source
from gdbext.sources.probe import ProbeSource
from gdbext.sources.ring_file import RingFile

LATE: Final = 300.0
"""Seconds after which a boot is given up."""
_LISTENING: Final = 0.001
"""Seconds between two looks at the serial port."""
PROGRESS: Final = 5
"""Processes of the workload after which the guest prints a line."""
AREAS: Final = 64
AREA_BYTES: Final = 256
STACK_BYTES: Final = 16384
"""A thread's kernel stack on x86-64 Linux; the user's registers lie at its top."""


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot. ``seconds``: wall time; ``cpu``: QEMU's processor time in seconds; ``events``: rows in the ring;
    ``marks``: the lines of its serial port (raw) with the seconds at which they came."""

    seconds: float
    cpu: float
    events: int = 0
    marks: tuple[tuple[str, float], ...] = ()


def processor_seconds(pid: int) -> float:
    """Processor time that all threads of process `pid` have taken."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:  # it has just ended
            continue
    return total / 1e9


class Listener(Console):
    """A console that is read by a thread, so that each line is heard as it comes.

    heard: called in that thread with each line (raw).
    """

    def __init__(self, console: Console, heard: Callable[[str], None]) -> None:
        self._console = console
        self._heard = heard
        self._lines: deque[str] = deque()
        self.closed = False
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def partial(self) -> str:
        """What has come of a line not yet ended."""
        return self._console.partial

    def lines(self) -> list[str]:
        """The lines completed since the last call."""
        return [self._lines.popleft() for _ in range(len(self._lines))]

    def _listen(self) -> None:
        while not self.closed:
            for line in self._console.lines():
                self._heard(line)
                self._lines.append(line)
            self.closed = self._console.closed
            time.sleep(_LISTENING)


class Stopwatch:
    """Runs from :meth:`start` until the guest prints `until`. ``seconds`` and ``cpu`` are 0 meanwhile, see Boot."""

    def __init__(self, until: str) -> None:
        self._until = until
        self._machine: Machine | None = None
        self._began = 0.0
        self.seconds = 0.0
        self.cpu = 0.0
        self._marks: list[tuple[str, float]] = []

    def start(self, machine: Machine) -> None:
        """The guest is about to run."""
        self._machine = machine
        self._began = time.monotonic()
        machine.console = Listener(machine.console, self._line)

    def _line(self, text: str) -> None:
        if self._machine is None or self.seconds:
            return
        now = time.monotonic() - self._began
        self._marks.append((text.strip(), now))
        if self._until in text:
            self.cpu = processor_seconds(self._machine.pid)
            self.seconds = now

    def wait(self, read: Callable[[], None]) -> None:
        """Let the guest run, calling `read` all the time, until it has printed it."""
        assert self._machine is not None
        while not self.seconds:
            ended = self._machine.ending() is not None
            read()
            if ended:
                time.sleep(10 * _LISTENING)  # what it printed before will then have been heard
            if not self.seconds and (ended or time.monotonic() - self._began > LATE):
                raise GuestFailed(f"the guest never printed {self._until!r}")

    def result(self, events: int) -> Boot:
        """The boot timed."""
        if not self.seconds:
            raise GuestFailed(f"the guest never printed {self._until!r}")
        return Boot(self.seconds, self.cpu, events, tuple(self._marks))


class Bench:
    """Boots one bundled guest in each way. ``scratch``: where recordings and logs go, as the last boot left them."""

    def __init__(self, guest: str, smp: int, rounds: int, scratch: Path) -> None:
        found = guests.find(guest)
        append = found.append.replace("quiet", "loglevel=7")  # the lines that it prints are marks: see stretches
        self.guest: Guest = replace(found, smp=smp, append=f"{append} rounds={rounds} progress={PROGRESS}")
        self.kernel = guests.build(self.guest)
        self.argv = self.guest.command(self.kernel)
        self.scratch = scratch
        self.probe = probe.build(which(self.argv[0]))
        self.image = images.load(self.kernel)

    @property
    def recording(self) -> Path:
        """What :meth:`recorded` leaves."""
        return self.scratch / "boot.ctx"

    def alone(self) -> Boot:
        """Nobody watches."""
        return self._bare(self.argv)

    def logged(self) -> Boot:
        """QEMU writes its interrupt log."""
        return self._bare([*self.argv, "-d", "int", "-D", str(self.scratch / "int.log")])

    def _bare(self, argv: list[str]) -> Boot:
        watch = Stopwatch(self.guest.until)
        with Machine(argv) as machine:
            watch.start(machine)
            machine.cont()
            watch.wait(lambda: time.sleep(0.005))
        return watch.result(0)

    def probed(self) -> Boot:
        """The probe, and a reader that throws the rows away."""
        return self._probed(areas=0)

    def with_areas(self) -> Boot:
        """The same, and stores watched at the tops of the first AREAS kernel stacks."""
        return self._probed(areas=AREAS)

    def _probed(self, areas: int) -> Boot:
        watch = Stopwatch(self.guest.until)
        rings: list[RingFile] = []

        def plugin(directory: Path) -> list[str]:
            rings.append(RingFile.create(directory / "ring"))
            return probe.plugin_args(self.probe, directory / "ring", watch=True)

        with Machine(self.argv, plugin=plugin) as machine, closing(ProbeSource(rings[0], machine.qmp)) as source:
            watch.start(machine)
            machine.cont()
            watched: dict[int, None] = {}

            def read() -> None:
                rows = source.read(0.05)
                if rows is not None and len(watched) < areas:
                    _watch_stacks(source, rows, watched, areas)

            watch.wait(read)
            return watch.result(source.published)

    def checked(self) -> Boot:
        """As ``ctxwatch run`` does it: every event judged."""
        return self._checked(None)

    def recorded(self) -> Boot:
        """As ``ctxwatch run --record`` does it."""
        self.recording.unlink(missing_ok=True)
        return self._checked(self.recording)

    def _checked(self, record: Path | None) -> Boot:
        watch = Stopwatch(self.guest.until)
        guest = self.guest
        subject = session.Subject(guest.name, tuple(self.argv), self.image, guest.until, LATE, ticks=True)
        view = _View()
        knowledge = running.knowledge_of(guest.profile, self.image, view.note)
        feed = _TimedFeed(probe.build(which(self.argv[0])), watch)
        outcome = session.watch(subject, knowledge, session.Options(record=record), feed, view)
        if outcome.failure is not None:
            raise outcome.failure
        if outcome.report.findings or outcome.report.lost:
            raise GuestFailed("a healthy guest was not seen as one", f"{outcome.report.findings[:1]}")
        return watch.result(feed.events)


def _watch_stacks(source: ProbeSource, rows: Batch, watched: dict[int, None], most: int) -> None:
    """Watch the top of each kernel stack that `rows` show to be in use, until there are `most`."""
    inside = rows["rsp"][(rows["kind"] == Kind.ENTRY) & (rows["rsp"] >> np.uint64(63) != 0) & (rows["cs"] & 3 == 0)]
    before = len(watched)
    for top in np.unique(inside | np.uint64(STACK_BYTES - 1)).tolist():
        if len(watched) < most:
            watched[top + 1] = None
    if len(watched) > before:
        source.set_watch([(top - AREA_BYTES, top) for top in watched])


class _TimedFeed(feeds.ProbeFeed):
    """A probe's feed that starts a stopwatch as the guest starts."""

    def __init__(self, build: probe.ProbeBuild, watch: Stopwatch) -> None:
        super().__init__(build, feeds.Wishes())
        self._watch = watch
        self.events = 0

    def open(self, machine: Machine) -> Source:
        """Join the ring and let the guest run."""
        self._watch.start(machine)
        source = super().open(machine)
        assert isinstance(source, ProbeSource)
        self._source = source
        return source

    def close(self) -> None:
        """Let go of the ring; keep how many rows it was given."""
        self.events = self._source.published
        super().close()


class _View:
    """Shows nothing."""

    def serial(self, line: str) -> None:
        """Heard by the stopwatch."""

    def note(self, text: str) -> None:
        """Not of interest."""

    def detail(self, text: str) -> None:
        """Not of interest."""

    def finding(self, finding: Finding) -> None:
        """Looked at in the end."""

    def progress(self, counts: Counts, seconds: float) -> None:
        """Not of interest."""

    def hold(self, invitation: str) -> None:
        """Never asked for."""
