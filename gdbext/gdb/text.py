"""Findings and states as GDB's user reads them: plain lines."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import gdb

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import display_name
from gdbext.errors import printable
from gdbext.report.words import last_written
from gdbext.rules.finding import Difference, Finding, Place

if TYPE_CHECKING:
    from gdbext.report.walked import Line

_COLUMNS: Final = 100
"""Of a drawn finding, where GDB does not know its terminal's."""


def place(where: Place) -> str:
    """``0xffffffff80101234 <idle+0x12>, CPL 0``."""
    named = f" <{where.symbol}>" if where.symbol else ""
    return f"{where.rip:#x}{named}, CPL {where.cpl}"


def difference(found: Difference, bits: int) -> str:
    """``rflags ZF lost`` or ``r9 0x1 -> 0x2``."""
    name = display_name(found.field, bits)
    if found.expected is None:
        return f"{name}: {found.actual:#x}"
    if found.field == "rflags":
        return f"{name}: {rf.difference(found.expected, found.actual)}"
    return f"{name}: {found.expected:#x} -> {found.actual:#x}"


def line(finding: Finding) -> str:
    """The finding in one line."""
    changed = "; ".join(difference(d, finding.bits) for d in finding.differences[:3])
    more = f" and {len(finding.differences) - 3} more" if len(finding.differences) > 3 else ""
    return (
        f"{finding.code} {finding.name} at event {finding.event}, CPU {finding.cpu}: "
        + (f"{vectors.name(finding.vector)} interrupted " if finding.vector is not None else "at ")
        + place(finding.interrupted)
        + (f"; {changed}{more}" if changed else "")
    )


def whole(finding: Finding) -> list[str]:
    """The finding with everything that is known, as lines."""
    lines = [
        f"{finding.code} {finding.name} ({finding.severity}), event {finding.event}, CPU {finding.cpu}"
        + (f", seen {finding.count} times" if finding.count > 1 else ""),
        f"  interrupted  {place(finding.interrupted)}"
        + (f", by {vectors.name(finding.vector)}" if finding.vector is not None else ""),
    ]
    for found in finding.differences:
        if found.expected is not None:
            lines.append(f"  expected     {_value(found.field, found.expected, finding.bits)}")
        lines.append(f"  actual       {_value(found.field, found.actual, finding.bits)}")
    if finding.differences:
        lines.append("  difference   " + "; ".join(difference(d, finding.bits) for d in finding.differences))
    if finding.slot:
        writer = finding.writer
        by = last_written(writer, (writer.symbol or hex(writer.rip)) if writer else "")
        lines.append(f"  slot         {finding.slot}{by}")
    symbol = f" <{finding.pc_symbol}>" if finding.pc_symbol else ""
    lines.append(f"  at           {finding.pc:#x}{symbol}")
    lines.append(f"  match        {finding.match}" + (f", entry {finding.entry}" if finding.entry else ""))
    return [*lines, f"  cause        {finding.cause}", f"  look at      {finding.look_at}"]


def _value(field: str, value: int, bits: int) -> str:
    flags = f" ({rf.describe(value)})" if field == "rflags" else ""
    return f"{display_name(field, bits)} = {value:#x}{flags}"


def drawn(finding: Finding, columns: int, colour: bool = True) -> str:
    """The finding as ``ctxwatch run`` draws it on a terminal so wide."""
    from rich.console import Console

    from gdbext.report.text import NARROWEST, render_finding

    out = io.StringIO()
    console = Console(
        file=out,
        width=max(columns, NARROWEST),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
    )
    console.print(render_finding(finding))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def picture(finding: Finding) -> list[Line]:
    """The finding drawn for GDB's terminal."""
    from gdbext.report.walked import Line

    columns = gdb.parameter("width") or _COLUMNS
    styled = bool(gdb.parameter("style enabled")) and os.isatty(1)
    return [Line(drawn(finding, min(columns, 2 * _COLUMNS), styled), "picture")]


def show(lines: Iterable[Line]) -> None:
    """Write a recording's answer."""
    for line in lines:
        gdb.write((line.text if line.style == "picture" else printable(line.text)) + "\n")
