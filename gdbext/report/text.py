"""Findings and results for a terminal, with rich. Everything that comes from the guest is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gdbext.errors import printable
from gdbext.events.held import NOT_CAPTURED
from gdbext.report.context import ContextRow, Fields, contexts
from gdbext.report.document import RunReport
from gdbext.report.words import by, code_parts, compared, differing, elapsed, last_written, left
from gdbext.rules.codes import ERROR, WARNING
from gdbext.rules.finding import CodeLine, Finding

_WORD: Final = 64
"""Bits of the widest value that takes one line, whatever the terminal."""
NARROWEST: Final = 60
"""Columns: two 64-bit values side by side, and what is said of them."""
_STYLES = {ERROR: "bold red", WARNING: "bold yellow"}


def render_finding(finding: Finding, full: bool = False) -> RenderableType:
    """The finding as a small picture; with `full`, every field of both contexts."""
    return Group(_headline(finding), Padding(Group(*_body(finding, full)), (0, 0, 1, 2), expand=False))


def render_learnt(finding: Finding, told: str) -> RenderableType:
    """What was learnt of the finding's cause when it came again, since the cause was `told`."""
    new = [part for part in finding.cause.split(". ") if part not in told.split(". ")]
    table = _columns()
    table.add_row("since then", printable(". ".join(new)))
    return Group(_headline(finding), Padding(table, (0, 0, 1, 2), expand=False))


def _headline(finding: Finding) -> Text:
    line = Text.assemble(_name(finding))
    line.append(f"  event {finding.event}, CPU {finding.cpu}{by(finding)}", "dim")
    return line


def _name(finding: Finding) -> Text:
    """What the exit status hangs on is said in words, too: not everybody sees the colour."""
    less = "" if finding.severity == ERROR else f" ({finding.severity})"
    return Text(f"{finding.code} {finding.name}{less}", _STYLES.get(finding.severity, "bold"))


def _body(finding: Finding, full: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [_places(finding)]
    parts.append(Text())
    parts += [Padding(_fields(table, full), (0, 0, 1, 0), expand=False) for table in contexts(finding)]
    if finding.table:
        parts.append(Padding(_area(finding), (0, 0, 1, 0), expand=False))
    if len(finding.steps) > 1:
        parts.append(Padding(_steps(finding), (0, 0, 1, 0), expand=False))
    for title, lines, at in code_parts(finding):
        parts.append(Padding(_code(title, lines, at), (0, 0, 1, 0), expand=False))
    parts.append(_sentences(finding))
    return parts


def _places(finding: Finding) -> Table:
    table = _columns()
    place = finding.interrupted
    mode = "user code" if place.cpl == 3 else "kernel code"
    table.add_row(left(finding), _address(place.rip, place.symbol) + f", {mode}")
    if finding.handler and not finding.switched:
        table.add_row("handler", f"{finding.handler:#x}")
    if finding.pc:
        table.add_row("seen at", _address(finding.pc, finding.pc_symbol))
    if finding.slot:
        writer = finding.writer
        at = _address(writer.rip, writer.symbol) if writer is not None else ""
        table.add_row("slot", printable(finding.slot) + last_written(writer, at))
    return table


def _fields(fields: Fields, full: bool) -> RenderableType:
    """Values are never cropped; what they mean goes on in the next line where the terminal is narrow."""
    both = bool(fields.headings[1])
    shown = [row for row in fields.rows if full or row.differs or row.main]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    wide = any((value or 0) >> _WORD for row in shown for value in (row.before, row.after))
    for heading in ("", "", *fields.headings):
        values = wide and bool(heading)
        table.add_column(heading, no_wrap=not values, overflow="fold", min_width=_WORD // 4 if values else None)
    table.add_column(overflow="fold")
    for row in shown:
        same = not row.differs and row.before is not None and row.after is not None
        style = "bold" if row.differs else "dim"
        changed = "bold red" if row.differs else "dim"
        table.add_row(
            Text("▶" if row.differs else " ", "red"),
            Text(row.label, style),
            Text(_hex(row.before, row), style if both else changed),
            Text("=" if same else _hex(row.after, row) if both else "", changed),
            Text(row.note, changed),
        )
    hidden = len(fields.rows) - len(shown)
    if not both or not hidden:
        return table
    return Group(table, Text(f"  the other {hidden} fields are as they were or are not part of the verdict", "dim"))


def _area(finding: Finding) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("slot", "holds", "un-shifted", "it is that of"):
        table.add_column(heading, no_wrap=heading != "it is that of")
    for name, holds, should, whose in finding.table:
        style = "" if holds == should else "bold"
        values = ["?" if value is None else f"{value:#x}" for value in (holds, should)]
        table.add_row(Text(printable(name), style), *(Text(value, style) for value in values), printable(whose or ""))
    return table


def _steps(finding: Finding) -> Table:
    """The way from save to resume, one step a line, the line of time at the left."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for step in finding.steps:
        guilty = step is finding.steps[-1] and bool(finding.differences)
        place = Text(_address(step.pc, step.symbol), "dim")
        table.add_row(
            Text("▶" if guilty else "│", "red" if guilty else "dim"),
            elapsed(step.time),
            f"event {step.event}",
            Text.assemble(printable(step.what), "  ", place),
        )
    return table


def _code(title: str, lines: Sequence[CodeLine], at: int) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for _ in ("mark", "address"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        style = "bold" if line.address == at else "dim"
        mark = Text("▶" if line.address == at else " ", "red")
        table.add_row(mark, Text(f"{line.address:x}", style), Text(printable(line.text), style))
    return Group(Text(title, "dim"), table)


def _sentences(finding: Finding) -> Table:
    table = _columns()
    if finding.entry is not None:
        table.add_row("compared to", compared(finding))
    if finding.thread:
        table.add_row("thread", printable(finding.thread))
    table.add_row("cause", Text(printable(finding.cause), "bold"))
    table.add_row("look at", printable(finding.look_at))
    return table


def _columns() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim", min_width=11)
    table.add_column(overflow="fold")
    return table


def _hex(value: int | None, row: ContextRow) -> str:
    if value is None:
        return "-" if row.differs else NOT_CAPTURED
    digits = f"{value:0{row.digits}x}"
    if not value >> _WORD:
        return digits
    return f"{digits[: -_WORD // 4]} {digits[-_WORD // 4 :]}"  # where it does not fit it is broken there


def _address(address: int, symbol: str | None) -> str:
    return f"{printable(symbol)} ({address:#x})" if symbol else f"{address:#x}"


def render_summary(report: RunReport) -> RenderableType:
    """The end of a run: what was seen, and each finding in one line."""
    counts = report.counts
    seen = (
        f"{counts.entries} entries ({counts.syscalls} system calls), {counts.exits} exits, {counts.identical} resumed"
    )
    line = Text(f"{seen} identical, {report.lost} lost, {report.seconds:.1f} s, by {report.source}", "dim")
    if not report.findings:
        said, clean = report.nothing_found
        return Group(Text(said, "bold green" if clean else "bold yellow"), line)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for finding in report.findings:
        times = "once" if finding.count == 1 else f"{finding.count} times"
        place = finding.interrupted
        table.add_row(
            _name(finding),
            differing(finding),
            times,
            f"first at event {finding.event}, {printable(place.symbol or hex(place.rip))}",
        )
    return Group(table, line)


def console(stderr: bool = False) -> Console:
    """A console that adds nothing of its own to what the guest says; honours NO_COLOR."""
    made = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if made.width < NARROWEST:  # COLUMNS=0, of which rich makes no line at all
        made.width = NARROWEST
    return made


class _Console(Console):
    """Of a reader who leaves the command tells: rich's own exit status for it, 1, means findings here."""

    def on_broken_pipe(self) -> None:
        """Called in the handler of the error."""
        raise BrokenPipeError
