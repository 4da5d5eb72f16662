"""A session as a trace that Perfetto and Chrome open: a track per vCPU with nested handlers, a lane for the active GS
base, one for the windows, findings as instant markers (the "Trace Event Format", JSON object form).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Final, TextIO

from gdbext.arch import vectors
from gdbext.errors import printable
from gdbext.events.row import Batch
from gdbext.report.timeline import KERNEL, RESUMED, USER, Slice, Stretch, Timeline
from gdbext.rules.finding import Finding

_LANES: Final = ("", " GS base", " windows")
"""Tracks of a vCPU, by what follows its name; thread numbers are 10 * CPU + place."""
_PID: Final = 1
_STATES: Final = {KERNEL: "kernel GS", USER: "user GS"}


class TraceWriter:
    """Writes a trace as batches come.

    guest: named in the trace.  symbol: names for addresses.  Raises OSError where `out` cannot take it.
    """

    def __init__(self, out: TextIO, guest: str, symbol: Callable[[int], str | None]) -> None:
        self._out = out
        self._symbol = symbol
        self._timeline = Timeline()
        self._start: int | None = None
        self._cpus: set[int] = set()
        out.write('{"displayTimeUnit":"ns","traceEvents":[\n')
        out.write(_meta("process_name", 0, printable(guest)))

    def feed(self, batch: Batch, findings: Iterable[Finding] = ()) -> None:
        """Add a batch and the findings that came with it (each marks its event in this batch or before)."""
        if not len(batch):
            return
        if self._start is None:
            self._start = int(batch["time"][0])
        self._name_tracks(set(batch["cpu"].tolist()))
        self._write(*self._timeline.feed(batch))
        for finding in findings:
            self._marker(finding)

    def finish(self) -> None:
        """Close what is open and end the document."""
        self._write(*self._timeline.finish())
        self._out.write("\n]}\n")

    def _write(self, slices: list[Slice], stretches: list[Stretch], windows: list[Stretch]) -> None:
        lines = [self._slice(item) for item in slices]
        lines += [
            self._span(item, 1, _STATES[item.state])
            for item in stretches
            if item.state in _STATES and item.end > item.start
        ]
        lines += [self._span(item, 2, "kernel code on the user's GS base") for item in windows]
        self._out.write("".join(lines))

    def _slice(self, item: Slice) -> str:
        name = "kernel code resumed" if item.vector == RESUMED else vectors.name(item.vector)
        args: dict[str, object] = {"event": item.event, "interrupted": hex(item.rip)}
        if item.until:
            args["resumed at event"] = item.until
        symbol = self._symbol(item.rip)
        if symbol:
            args["symbol"] = printable(symbol)
        return (
            f',\n{{"ph":"X","pid":{_PID},"tid":{item.cpu * 10},"ts":{self._us(item.start)},'
            f'"dur":{_us(item.end - item.start)},"name":{json.dumps(name)},"args":{json.dumps(args)}}}'
        )

    def _span(self, item: Stretch, lane: int, name: str) -> str:
        return (
            f',\n{{"ph":"X","pid":{_PID},"tid":{item.cpu * 10 + lane},"ts":{self._us(item.start)},'
            f'"dur":{_us(item.end - item.start)},"name":{json.dumps(name)}}}'
        )

    def _marker(self, finding: Finding) -> None:
        row = finding.row
        time = int(row["time"][0]) if row is not None else self._start or 0
        args = {"event": finding.event, "cause": printable(finding.cause), "look at": printable(finding.look_at)}
        self._out.write(
            f',\n{{"ph":"i","s":"t","pid":{_PID},"tid":{finding.cpu * 10},"ts":{self._us(time)},'
            f'"name":{json.dumps(f"{finding.code} {finding.name}")},"args":{json.dumps(args)}}}'
        )

    def _name_tracks(self, cpus: set[int]) -> None:
        for cpu in sorted(cpus - self._cpus):
            for place, lane in enumerate(_LANES):
                tid = cpu * 10 + place
                self._out.write(",\n" + _meta("thread_name", tid, f"CPU {cpu}{lane}"))
                self._out.write(f',\n{{"ph":"M","pid":{_PID},"tid":{tid},"name":"thread_sort_index",')
                self._out.write(f'"args":{{"sort_index":{tid}}}}}')
        self._cpus |= cpus

    def _us(self, time: int) -> str:
        return _us(time - (self._start or 0))


def _us(nanoseconds: int) -> str:
    """Microseconds with three decimals, exactly."""
    sign = "-" if nanoseconds < 0 else ""
    whole, rest = divmod(abs(nanoseconds), 1000)
    return f"{sign}{whole}.{rest:03d}"


def _meta(kind: str, tid: int, name: str) -> str:
    return f'{{"ph":"M","pid":{_PID},"tid":{tid},"name":"{kind}","args":{{"name":{json.dumps(name)}}}}}'
