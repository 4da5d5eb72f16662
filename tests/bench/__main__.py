"""What watching costs, measured in one run: a Linux boot with its workload, unwatched and watched in every way.

The ways of booting take turns, so that what else the machine does falls on all alike, until three more turns change
no way's time by over 1 %. Their seconds are put together of the fastest stretches of all turns (see stretches), the
processor's are the fastest boot's; of judging and replaying, which are timed in parts, the fastest part counts. The
kernel's own boot differs by its random layout, which several turns even out.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from gdbext.cli import output
from gdbext.errors import CtxwatchError, GuestFailed, UsageError
from gdbext.report import outfile, text
from tests.bench import engine, stops
from tests.bench.boots import Bench, Boot
from tests.bench.stretches import undisturbed

MANY: Final = 4
"""vCPUs of the boots with several."""
GOAL: Final = 2e6
"""Events a second wanted at least."""
LATELY: Final = 3
"""Turns..."""
STEADY: Final = 1.01
"""...in which no way may have become faster by more than this."""
REPLAYED: Final = 10_000_000
"""Events of the recording that is replayed, at most."""


@dataclass(slots=True)
class Way:
    """One way of booting. ``base``: the way its time is held against; ``goal``: the ratio wanted at most."""

    name: str
    boot: Callable[[], Boot]
    base: str
    goal: float | None
    done: list[Boot] = field(default_factory=list)

    def seconds(self, against: Way) -> float:
        """Undisturbed, in stretches that the way has, too, against which it is held."""
        return undisturbed([boot.marks for boot in self.done], [boot.marks for boot in against.done])

    @property
    def settled(self) -> bool:
        """True if the last turns changed nothing of note."""
        marks = [boot.marks for boot in self.done]
        earlier = marks[:-LATELY]
        return len(earlier) > 1 and undisturbed(earlier, marks) <= STEADY * undisturbed(marks)

    @property
    def cpu(self) -> float:
        """The least processor time."""
        return min(boot.cpu for boot in self.done)


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of the result. ``value`` in the unit that ``what`` names; ``good``: the goal was met, None without."""

    what: str
    value: float
    shown: str
    goal: str
    good: bool | None


def ways(one: Bench, many: Bench) -> list[Way]:
    """Every way of booting, those they are held against first."""
    return [
        Way("alone", one.alone, "alone", None),
        Way("probe, rows thrown away", one.probed, "alone", None),
        Way("checked (ctxwatch run)", one.checked, "alone", 1.15),
        Way("checked and recorded", one.recorded, "alone", 1.25),
        Way("64 areas of 256 bytes watched", one.with_areas, "probe, rows thrown away", 1.5),
        Way("-d int", one.logged, "alone", None),
        Way(f"alone, -smp {MANY}", many.alone, f"alone, -smp {MANY}", None),
        Way(f"checked, -smp {MANY}", many.checked, f"alone, -smp {MANY}", 1.25),
    ]


def boot_in_turns(chosen: Sequence[Way], turns: int) -> None:
    """Boot in every way until that changes no time any more, `turns` times at most. Where QEMU or its guest fails, that
    boot is left out, unless none succeeds. Each turn has an order of its own: what else the machine does may have a
    rhythm, too."""
    for turn in range(turns):
        for way in random.Random(turn).sample(chosen, len(chosen)):
            try:
                way.done.append(way.boot())
                what = f"{way.done[-1].seconds:.2f} s"
            except GuestFailed as error:
                if turn == turns - 1 and not way.done:
                    raise
                what = f"left out: {error}"
            print(f"bench: turn {turn + 1}, {way.name}: {what}", file=sys.stderr)
        if all(way.settled for way in chosen):
            return


def costs(chosen: Sequence[Way], seconds: float) -> list[Measure]:
    """What an event costs each way that looks at every one.

    The probe's is what its fastest boot takes more of the processor than the fastest unwatched one. Where that is
    nothing, there is no telling.
    """
    by_name = {way.name: way for way in chosen}
    alone, checked = by_name["alone"], by_name["checked (ctxwatch run)"]
    events = statistics.median(boot.events for boot in checked.done)
    probe = (checked.cpu - alone.cpu) / events
    script, stub = stops.by_user_script(seconds), stops.by_gdbstub_source(seconds)
    return [
        Measure("a GDB Python script, an event", script, f"{script * 1e3:.2f} ms", "", None),
        Measure("the gdbstub source, an event", stub, f"{stub * 1e3:.2f} ms", "", None),
        Measure("the probe, an event", probe, f"{probe * 1e6:.2f} µs", "", None),
        *([_ratio(script / probe)] if probe > 0 else []),
    ]


def _ratio(times: float) -> Measure:
    return Measure("GDB script : probe", times, f"{times:.0f} : 1", "1000 : 1", times >= 1000)


def engine_measures(recording: Path, events: int, scratch: Path) -> list[Measure]:
    """Speed and memory of the rules."""
    pace = engine.pace(recording, events)
    mega = pace.growth / 1e6
    again = engine.replayed(recording, min(events, REPLAYED), scratch)
    return [
        _speed("engine, all rules, events a second", pace.rates, GOAL),
        Measure(f"memory grown over {pace.events:,} events", mega, f"{mega:.1f} MB", "16 MB", mega <= 16),
        _speed("replay, events a second of one core", again.rates, GOAL),
        _speed("replay, events a second of time", again.walls, None),
        Measure("recording, bytes an event", again.bytes, f"{again.bytes:.1f}", "", None),
    ]


def _speed(what: str, rates: Sequence[float], goal: float | None) -> Measure:
    """The fastest of the parts counts, as of the boots; the slowest is shown, too."""
    best, worst = max(rates), min(rates)
    shown = f"{best / 1e6:.2f} M (slowest part {worst / 1e6:.2f})"
    return Measure(what, best, shown, f"{goal / 1e6:.0f} M" if goal else "", best >= goal if goal else None)


def boots_table(chosen: Sequence[Way]) -> Table:
    """The ways of booting, for a person."""
    shown = _table("what", "seconds", "ratio", "QEMU's CPU s", "ratio", "rows", "goal", "")
    by_name = {way.name: way for way in chosen}
    for way in chosen:
        base = by_name[way.base]
        seconds = way.seconds(base)
        wall, cpu = seconds / base.seconds(way), way.cpu / base.cpu
        rows = f"{way.done[-1].events:,}" if way.done[-1].events else ""
        goal = f"{way.goal:.2f}" if way.goal else ""
        cells = (f"{seconds:.2f}", f"{wall:.3f}", f"{way.cpu:.2f}", f"{cpu:.3f}", rows, goal)
        shown.add_row(way.name, *cells, _verdict(wall <= way.goal if way.goal else None))
    return shown


def measures_table(measures: Sequence[Measure]) -> Table:
    """The single values, for a person."""
    shown = _table("what", "value", "goal", "")
    for measure in measures:
        shown.add_row(measure.what, measure.shown, measure.goal, _verdict(measure.good))
    return shown


def _table(first: str, *headings: str) -> Table:
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column(first)
    for heading in headings:
        shown.add_column(heading, justify="right", no_wrap=True)
    return shown


def _verdict(good: bool | None) -> str:
    return "" if good is None else "met" if good else "missed"


def about() -> dict[str, str]:
    """What it was measured on."""
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": f"{len(model)} × {model[0] if model else platform.machine()}",
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "gdb": _first_line("gdb", "--version"),
        "python": f"{platform.python_version()}, NumPy {np.__version__}",
    }


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        "scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--guest", default="linux-amd64", help="the Linux guest to boot (default %(default)s)")
    made.add_argument("--turns", type=int, default=16, help="boots in each way at most (default %(default)s)")
    made.add_argument("--rounds", type=int, default=1, help="how much of the workload a boot does (default 1)")
    made.add_argument("--only", metavar="TEXT", help="only the ways of booting that have TEXT in their name, and alone")
    made.add_argument("--recording", metavar="FILE", help="boot nothing: only judge and replay FILE, of a whole boot")
    made.add_argument("--events", type=float, default=100e6, help="for the engine to judge (default 100 million)")
    made.add_argument("--seconds", type=float, default=20.0, help="for each way that stops the guest (default 20)")
    made.add_argument("--json", metavar="FILE|-", help="write the result as JSON; - prints it, and nothing else")
    return made


def run(options: argparse.Namespace, scratch: Path) -> tuple[list[Way], list[Measure]]:
    """All of it, or the ways of booting asked for."""
    if options.recording is not None:
        return [], engine_measures(Path(options.recording), int(options.events), scratch)
    one, many = (Bench(options.guest, smp, options.rounds, scratch) for smp in (1, MANY))
    chosen = ways(one, many)
    if options.only is not None:
        wanted = {way.name for way in chosen if options.only in way.name}
        if not wanted:
            names = "; ".join(way.name for way in chosen)
            raise UsageError(f"--only {options.only}: no way of booting has that in its name", f"there are {names}")
        for way in reversed(chosen):  # what it is held against comes before it
            if way.name in wanted:
                wanted.add(way.base)
        chosen = [way for way in chosen if way.name in wanted]
    boot_in_turns(chosen, options.turns)
    if options.only is not None:
        return chosen, []
    return chosen, costs(chosen, options.seconds) + engine_measures(one.recording, int(options.events), scratch)


def main(words: Sequence[str] | None = None) -> int:
    """Do it; returns the exit status: 0 also where a goal was missed, which a busy machine brings about."""
    options = parser().parse_args(words)
    try:
        with tempfile.TemporaryDirectory(prefix="ctxwatch-bench-") as scratch:
            chosen, measures = run(options, Path(scratch))
        facts = about()
        if options.json is not None:
            with outfile.document(options.json) as document:
                json.dump(_document(facts, chosen, measures), document, indent=2)
    except CtxwatchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.status
    if options.json != "-":
        console = text.console()
        for name, fact in facts.items():
            console.print(f"{name}: {fact}", highlight=False)
        for shown in (boots_table(chosen), measures_table(measures)):
            if shown.row_count:
                console.print(shown)
    return 0


def _document(facts: dict[str, str], chosen: Sequence[Way], measures: Sequence[Measure]) -> dict[str, Any]:
    boots = {way.name: {"base": way.base, "goal": way.goal, "boots": [asdict(b) for b in way.done]} for way in chosen}
    return {"about": facts, "boots": boots, "measures": [asdict(measure) for measure in measures]}


if __name__ == "__main__":
    sys.exit(output.told(main))
