"""Linux under watch for as long as one likes: kernel × CPU model × SMP × page-table isolation × workload.

Each machine boots once and runs the workloads in turn until its time is up; what was checked and found is counted for
the workload under way. Exit status 1 if anything of severity error was found, 3 if a guest or a workload's check of
itself failed; 130 after a Ctrl-C, 143 after a SIGTERM, which end the machine under way and begin no other.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from gdbext.cli import feeds, output, running, session
from gdbext.cli.session import Outcome, Subject
from gdbext.errors import CtxwatchError, UsageError
from gdbext.qemu import guests, images
from gdbext.qemu.guests import Guest
from gdbext.report import outfile, text
from gdbext.report.document import finding_document
from gdbext.rules.codes import ERROR
from gdbext.rules.engine import Counts
from gdbext.rules.finding import Finding

WORKLOADS: Final = (
    "default",
    "forks",
    "signals",
    "restart",
    "tracing",
    "bases",
    "extable",
    "traps",
    "simd",
    "futex",
    "segments",
    "rseq",
    "probes",
    "hotplug",
    "spin",
)
BOOT: Final = "boot"
"""What comes before the first workload has ended its first line: the kernel's own start."""
BOOT_SECONDS: Final = 90.0
"""Wall time granted beside the time asked for: booting, and the round of workloads under way."""
_FIRST_HALF: Final = "default"
"""The workload that tells of itself twice: it ends with `files`."""
_RESULT: Final = re.compile(r"workload (\S+) (ok|FAILED.*)")
_WIDTH: Final = 120
"""Columns of what goes to a file."""
_TROUBLE: Final = re.compile(
    r"BUG:|WARNING: \S*:|Oops|general protection|kernel panic|rcu:.*stall|Unable to handle", re.I
)
"""What a kernel says that is not well."""


@dataclass(frozen=True)
class Machine:
    """One cell of the table but for the workload."""

    guest: str
    cpu: str
    smp: int
    pti: bool

    def configured(self, workloads: Sequence[str], seconds: float, more: str) -> Guest:
        """The bundled guest, changed to this machine."""
        guest = guests.find(self.guest)
        # On a busy host an emulated timer's ticks come late, and a kernel that tests for that calls it broken.
        words = [guest.append, "no_timer_check", f"seconds={seconds:.0f}", "pti=on" if self.pti else "", more]
        return replace(
            guest,
            cpu=self.cpu,
            smp=self.smp,
            append=" ".join(filter(None, words)),
            workload=",".join(workloads),
            seconds=seconds + BOOT_SECONDS,
        )

    @property
    def slug(self) -> str:
        """Its name as a file's."""
        return re.sub(r"[^\w.-]+", "_", str(self))

    def __str__(self) -> str:
        return f"{self.guest} -cpu {self.cpu} -smp {self.smp}{' pti=on' if self.pti else ''}"


@dataclass
class Row:
    """What one workload on one machine came to; counts of events."""

    entries: int = 0
    exits: int = 0
    identical: int = 0
    runs: int = 0
    errors: int = 0
    others: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def checked(self) -> int:
        """Events that were held against the rules."""
        return self.entries + self.exits


class Tally:
    """The view of a run that counts by workload. The guest tells when one has ended."""

    def __init__(self, workloads: Sequence[str]) -> None:
        self._workloads = list(workloads)
        self._turn = 0
        self._counts = Counts()
        self._settled = (0, 0, 0)
        self.current = BOOT
        self.rows: dict[str, Row] = {}
        self.trouble: list[str] = []
        self.notes: list[str] = []

    def row(self) -> Row:
        """That of the workload under way."""
        return self.rows.setdefault(self.current, Row())

    def serial(self, line: str) -> None:
        """The guest printed `line`."""
        if line.startswith("guest: start"):
            self._settle()
            self.current = self._workloads[0]
        result = _RESULT.search(line)
        if result:
            self._settle()
            if result[2] != "ok":
                self.row().failed.append(line.strip())
            if result[1] != _FIRST_HALF:
                self.row().runs += 1
                self._turn = (self._turn + 1) % len(self._workloads)
                self.current = self._workloads[self._turn]
        elif _TROUBLE.search(line):
            self.trouble.append(line.strip())

    def _settle(self) -> None:
        """What was counted since the last time belongs to the workload under way."""
        row, counts = self.row(), self._counts
        now = counts.entries, counts.exits, counts.identical
        entries, exits, identical = (after - before for after, before in zip(now, self._settled, strict=True))
        row.entries, row.exits, row.identical = row.entries + entries, row.exits + exits, row.identical + identical
        self._settled = now

    def progress(self, counts: Counts, _seconds: float) -> None:
        """Called all the time; `counts` goes on counting."""
        self._counts = counts

    def finish(self, outcome: Outcome) -> None:
        """The run has ended; what was not counted yet belongs to the workload that was under way."""
        self.progress(outcome.report.counts, 0)
        self._settle()

    def finding(self, finding: Finding) -> None:
        """The first of its kind."""
        if finding.severity == ERROR:
            self.row().errors += 1
        else:
            self.row().others += 1

    def note(self, text: str) -> None:
        """Something a person should know."""
        self.notes.append(text)

    def detail(self, text: str) -> None:
        """Not of interest."""

    def hold(self, invitation: str) -> None:
        """Never asked for."""


@dataclass
class Result:
    """One machine's run. ``interrupted``: the signal that ended it, or 0."""

    machine: Machine
    seconds: float = 0.0
    lost: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    interrupted: int = 0

    @property
    def checked(self) -> int:
        """Events checked in all."""
        return sum(row.checked for row in self.rows.values())

    @property
    def has_errors(self) -> bool:
        """True if anything of severity error was found."""
        return any(finding.severity == ERROR for finding in self.findings)

    @property
    def failed(self) -> bool:
        """True if the guest, or one of its checks of itself, did not do well."""
        return bool(self.trouble or self.lost or any(row.failed for row in self.rows.values()))

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        rows = {name: asdict(row) | {"checked": row.checked} for name, row in self.rows.items()}
        return asdict(self.machine) | {
            "seconds": round(self.seconds, 1),
            "checked": self.checked,
            "lost": self.lost,
            "workloads": rows,
            "findings": [finding_document(finding) for finding in self.findings],
            "trouble": self.trouble,
        }


def soak(machine: Machine, workloads: Sequence[str], seconds: float, options: argparse.Namespace) -> Result:
    """Boot `machine` and watch it for about `seconds` of its own time."""
    guest = machine.configured(workloads, seconds, options.append)
    kernel = guests.build(guest)
    image = None if options.blind else images.load(kernel)
    tally = Tally(workloads)
    nmi = options.nmi if options.nmi is not None else guest.nmi_ms
    subject = Subject(guest.name, tuple(guest.command(kernel)), image, guest.until, guest.seconds, nmi, ticks=True)
    profile = options.profile or ("generic" if options.blind else guest.profile)
    knowledge = running.knowledge_of(profile, image, tally.note)
    feed = feeds.choose("probe", subject.argv, feeds.Wishes(simd=options.simd), tally.note)
    record = options.record / f"{machine.slug}.ctxwatch" if options.record is not None else None
    asked = session.Options(timeout=seconds + BOOT_SECONDS, record=record)
    result = Result(machine)
    try:
        outcome = session.watch(subject, knowledge, asked, feed, tally)
    except CtxwatchError as error:
        result.trouble.append(str(error))
        return result
    tally.finish(outcome)
    result.rows, result.lost, result.seconds = tally.rows, outcome.report.lost, outcome.report.seconds
    result.findings, result.trouble = list(outcome.report.findings), tally.trouble + tally.notes
    result.interrupted = outcome.interrupted
    if outcome.failure is not None:
        result.trouble.append(str(outcome.failure))
    if record is not None and not result.has_errors and not result.failed:
        record.unlink()  # nothing to look into
    return result


def machines(options: argparse.Namespace) -> list[Machine]:
    """Every machine asked for; page-table isolation is the 64-bit kernels' alone."""
    known = [name for name in guests.names() if guests.find(name).linux is not None]
    names = known if options.guest == ["all"] else options.guest
    found = []
    for name in names:
        guest = guests.find(name)
        if guest.linux is None:
            raise UsageError(f"{name} is not a Linux guest", todo=f"Linux guests are {', '.join(known)}; or say all")
        isolation = [False, True] if guest.arch == "x86_64" else [False]
        chosen = product(
            options.cpu or dict.fromkeys((guest.cpu, "max")),
            options.smp or dict.fromkeys((guest.smp, 4)),
            options.pti or isolation,
        )
        found += [Machine(name, cpu, smp, pti) for cpu, smp, pti in chosen if pti in isolation]
    return found


def workloads_of(machine: Machine, options: argparse.Namespace, turn: int) -> list[str]:
    """The workloads in order; each machine begins with another one, so that short runs see them all."""
    wide = guests.find(machine.guest).arch == "x86_64"
    names = [*WORKLOADS, *(f"{name}32" for name in WORKLOADS[1:] if wide)]
    names = options.workload or names
    turn = turn * 5 % len(names)
    return names[turn:] + names[:turn]


def table(results: Sequence[Result]) -> Table:
    """A line for each workload of each machine that ran it."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("kernel", no_wrap=True)
    for heading in ("CPU", "SMP", "PTI", "workload"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("runs", "checked", "identical", "errors", "other", "lost"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("self-check", no_wrap=True)
    for result in results:
        machine = result.machine
        for name, row in result.rows.items():
            place = (machine.guest, machine.cpu, str(machine.smp), "on" if machine.pti else "", name)
            counts = (row.runs, row.checked, row.identical, row.errors, row.others, result.lost)
            shown.add_row(*place, *map(str, counts), "FAILED" if row.failed else "ok" if row.runs else "")
    return shown


def _show(results: Sequence[Result]) -> None:
    console = text.console()
    if not console.is_terminal:
        console.width = _WIDTH
    for result in results:
        for finding in result.findings:
            console.print(f"\n{result.machine}")
            console.print(text.render_finding(finding, full=True))
        for line in [*result.trouble, *(line for row in result.rows.values() for line in row.failed)]:
            console.print(f"{result.machine}: {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(table(results))
    lost, seconds = sum(result.lost for result in results), sum(result.seconds for result in results)
    errors = sum(finding.severity == ERROR for result in results for finding in result.findings)
    others = sum(len(result.findings) for result in results) - errors
    checked = sum(result.checked for result in results)
    console.print(
        f"{checked:,} events checked on {len(results)} machines in {seconds:.0f} s: {errors} findings of severity "
        f"error, {others} others, {lost} lost",
        highlight=False,
    )


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("guest", nargs="+", metavar="GUEST|all", help="Linux guests; `ctxwatch guests` lists them")
    made.add_argument("--minutes", type=_minutes, default=10.0, help="in all, divided among the machines (default 10)")
    made.add_argument("--cpu", action="append", help="only this CPU model (may be repeated)")
    made.add_argument("--smp", action="append", type=int, help="only this number of CPUs (may be repeated)")
    made.add_argument("--pti", action="append", type=_switch, metavar="on|off", help="only with, or without, pti=on")
    made.add_argument("--workload", action="append", help="only this workload (may be repeated)")
    made.add_argument("--append", default="", help="more words for the kernel's command line")
    made.add_argument("--profile", help="another profile than the guest's")
    made.add_argument("--blind", action="store_true", help="told nothing of the kernel: no names, no profile")
    made.add_argument("--nmi", type=int, metavar="MS", help="inject an NMI every MS milliseconds")
    made.add_argument("--simd", action="store_true", help="compare XMM, MXCSR and x87 state too")
    made.add_argument("--record", type=Path, metavar="DIR", help="keep there the recordings of what did not go well")
    made.add_argument("--json", metavar="FILE|-", help="write the result as JSON; - prints it, and nothing else")
    return made


def _minutes(word: str) -> float:
    minutes = float(word)
    if not 0 < minutes < 1e6:
        raise argparse.ArgumentTypeError(f"{word!r} minutes end nothing")
    return minutes


def _switch(word: str) -> bool:
    if word not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither on nor off")
    return word == "on"


def run(options: argparse.Namespace) -> Iterator[Result]:
    """Every machine in its turn, until a signal ends one."""
    chosen = machines(options)
    began = time.monotonic()
    for turn, machine in enumerate(chosen):
        left = options.minutes * 60 - (time.monotonic() - began)
        result = soak(machine, workloads_of(machine, options, turn), max(left / (len(chosen) - turn), 1), options)
        print(
            f"{machine}: {result.checked} events in {result.seconds:.0f} s, {len(result.findings)} findings"
            f"{', FAILED' if result.failed else ''}",
            file=sys.stderr,
        )
        yield result
        if result.interrupted:
            return


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {directory}", error.strerror or str(error)) from error


def _write(name: str, results: Sequence[Result]) -> None:
    with outfile.document(name) as document:
        json.dump([result.document() for result in results], document, indent=2)


def main(words: Sequence[str] | None = None) -> int:
    """Do it; returns the exit status."""
    options = parser().parse_args(words)
    results: list[Result] = []
    try:
        if options.record is not None:
            _make(options.record)
        for result in run(options):
            results.append(result)
            if options.json not in (None, "-"):
                _write(options.json, results)  # what there is: a long run may be ended from outside
        if options.json == "-":
            _write(options.json, results)
    except CtxwatchError as error:
        print(f"soak: {error}", file=sys.stderr)
        return error.status
    if options.json != "-":
        _show(results)
    if results and results[-1].interrupted:
        return 128 + results[-1].interrupted
    if any(result.has_errors for result in results):
        return 1
    return 3 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(output.told(main))
