"""One finding as HTML: the same picture as on the terminal, every field of both contexts in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Final

from gdbext.arch.registers import GPR32, GPR64
from gdbext.errors import printable
from gdbext.events.held import NOT_CAPTURED
from gdbext.report.context import ContextRow, Fields, contexts
from gdbext.report.words import by, code_parts, compared, differing, elapsed, last_written, left
from gdbext.rules.codes import CODES
from gdbext.rules.finding import CodeLine, Finding

_NAME: Final = re.compile(
    rf"(?:{'|'.join((*GPR64, *GPR32))}|[er]?(?:ip|flags)|xmm\d+|\w+_base|iret\w?|sys(?:call|ret|enter|exit)|swapgs)\b"
)
"""Of a register or an instruction."""


def article(number: int, finding: Finding) -> str:
    """The finding, closed but for the first; `number` from 1 names it in the page."""
    opened = " open" if number == 1 else ""
    tables = "".join(map(_fields, contexts(finding)))
    return (
        f'<details class="finding {_text(finding.severity)}" id="finding-{number}"{opened}>{_summary(finding)}'
        f'<div class="body">{_sentences(finding)}'
        f'<p><button type="button" class="show" data-finding="{number}" hidden>Show in the timeline</button></p>'
        f'{_places(finding)}<div class="picture"><div>{tables}{_area(finding)}</div>'
        f"<div>{_steps(finding)}{_codes(finding)}</div></div></div></details>"
    )


def head(number: int, finding: Finding) -> str:
    """The finding as an item of the list at the top of the page, the first with the first sentence of its cause."""
    cause = f'<p class="cause">{_text(_capital(finding.cause.split(". ")[0]))}.</p>' if number == 1 else ""
    return (
        f'<li class="{_text(finding.severity)}"><a href="#finding-{number}"><b>{finding.code} {_text(finding.name)}</b>'
        f'</a> {_text(differing(finding))} <span class="quiet">{_seen(finding)}</span>{cause}</li>'
    )


def _summary(finding: Finding) -> str:
    field = f"<span>{_text(differing(finding))}</span>" if finding.field else ""
    return (
        f'<summary><span class="code">{finding.code}</span> <strong>{_text(finding.name)}</strong> {field}'
        f'<span class="quiet">{_seen(finding)}</span></summary>'
    )


def _seen(finding: Finding) -> str:
    """How often it was found, and where first."""
    times = "once" if finding.count == 1 else f"{finding.count:,} times"
    place = finding.interrupted
    where = _text(place.symbol or hex(place.rip))
    return f"{times}, first at event {finding.event}, CPU {finding.cpu}{_text(by(finding))}, {where}"


def _sentences(finding: Finding) -> str:
    cause = _text(_capital(finding.cause))
    says = _text(CODES[finding.code].says)
    return (
        f'<p class="cause">{cause}.</p><p class="advice"><b>Look at</b> {_text(finding.look_at)}.</p>'
        f'<p class="quiet">{finding.code} {_text(finding.name)}: {says}.</p>'
    )


def _places(finding: Finding) -> str:
    place, writer = finding.interrupted, finding.writer
    rows = [(left(finding), _address(place.rip, place.symbol) + (", user code" if place.cpl == 3 else ", kernel code"))]
    if finding.handler and not finding.switched:
        rows.append(("handler", _address(finding.handler, None)))
    if finding.pc:
        rows.append(("seen at", _address(finding.pc, finding.pc_symbol)))
    if finding.slot:
        at = _address(writer.rip, writer.symbol) if writer is not None else ""
        rows.append(("slot", _text(finding.slot) + last_written(writer, at, _text)))
    if finding.entry is not None:
        rows.append(("compared to", _text(compared(finding))))
    if finding.thread:
        rows.append(("thread", _text(finding.thread)))
    return (
        '<dl class="places">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows) + "</dl>"
    )


def _fields(fields: Fields) -> str:
    head = "".join(f'<th scope="col">{_text(heading)}</th>' for heading in ("field", *filter(None, fields.headings)))
    body = "".join(_context(row, both=bool(fields.headings[1])) for row in fields.rows)
    return (
        f'<h4>{_text(_capital(fields.title))}</h4><div class="scroll"><table class="context"><thead><tr>{head}'
        f'<th scope="col"><span class="hidden">difference</span></th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _context(row: ContextRow, both: bool) -> str:
    marked = ' class="differs"' if row.differs else ""
    mark = '<span class="hidden">differs: </span>' if row.differs else ""
    missing = "-" if row.differs else NOT_CAPTURED
    values = (row.before, row.after) if both else (row.before,)
    cells = "".join(f"<td>{missing if value is None else f'{value:0{row.digits}x}'}</td>" for value in values)
    return (
        f'<tr{marked}><th scope="row">{mark}{_text(row.label)}</th>{cells}<td class="note">{_text(row.note)}</td></tr>'
    )


def _area(finding: Finding) -> str:
    """The save area as it is beside the area un-shifted (CW402)."""
    if not finding.table:
        return ""
    body = []
    for name, holds, should, whose in finding.table:
        marked = "" if holds == should else ' class="differs"'
        values = "".join(f"<td>{'?' if value is None else f'{value:#x}'}</td>" for value in (holds, should))
        body.append(f'<tr{marked}><th scope="row">{_text(name)}</th>{values}<td>{_text(whose or "")}</td></tr>')
    return (
        '<h4>Save area</h4><div class="scroll"><table class="context"><thead><tr><th scope="col">slot</th>'
        '<th scope="col">holds</th><th scope="col">un-shifted</th><th scope="col">it is that of</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _steps(finding: Finding) -> str:
    if len(finding.steps) < 2:
        return ""
    body = "".join(
        f'<li><span class="time">{elapsed(step.time)}</span> <span class="quiet">event {step.event}</span> '
        f'{_text(step.what)} <span class="quiet">{_address(step.pc, step.symbol)}</span></li>'
        for step in finding.steps
    )
    return f'<h4>From save to resume</h4><ol class="steps">{body}</ol>'


def _codes(finding: Finding) -> str:
    return "".join(_code(title, lines, at) for title, lines, at in code_parts(finding))


def _code(title: str, lines: Sequence[CodeLine], at: int) -> str:
    body = "".join(
        f'<tr{" class=differs" if line.address == at else ""}><td class="quiet">{line.address:x}</td>'
        f"<td>{_text(line.text)}</td></tr>"
        for line in lines
    )
    return (
        f'<h4>{_text(_capital(title))}</h4><div class="scroll"><table class="asm"><tbody>{body}</tbody></table></div>'
    )


def _address(address: int, symbol: str | None) -> str:
    return f"<code>{_text(symbol)}</code> ({address:#x})" if symbol else f"<code>{address:#x}</code>"


def _capital(sentence: str) -> str:
    """The sentence with its first letter a capital, unless it begins with the name of a register or instruction."""
    named = _NAME.match(sentence) is not None
    return sentence if named else sentence[:1].upper() + sentence[1:]


def _text(value: object) -> str:
    return escape(printable(str(value)))
