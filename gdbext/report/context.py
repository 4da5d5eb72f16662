"""The interrupted and the resumed context beside each other, as typed rows for any renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gdbext.arch import flags
from gdbext.arch.addresses import rpl
from gdbext.arch.registers import GPR64, display_name
from gdbext.events.row import Batch, Kind
from gdbext.rules.finding import Finding

_FRAME: Final = ("rip", "cs", "rflags", "rsp", "ss")
_ALWAYS: Final = frozenset({"rip", "rsp", "rflags", "cs"})
_SELECTORS: Final = frozenset({"cs", "ss", "ds", "es", "fs", "gs"})


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One field: its name as a person writes it, both values (None: not captured), what the difference means."""

    label: str
    before: int | None
    after: int | None
    note: str
    differs: bool
    main: bool
    """Worth showing even where it does not differ."""
    digits: int
    """Hexadecimal digits of its width."""


def context_rows(finding: Finding) -> list[ContextRow]:
    """All fields of the finding's contexts in the order of the frame, the general registers, the bases.

    The left side is the ledger entry the exit was held against, the right side what the judged event resumes; one of
    them is None throughout where there is no such event.
    """
    before = finding.entry_row
    after = finding.row if finding.row is not None and int(finding.row["kind"][0]) != Kind.ENTRY else None
    if before is None and after is None:
        before = finding.row
    expected = {difference.field: difference for difference in finding.differences}
    fields = [*_FRAME, *(name for name in _registers(finding.bits) if name != "rsp"), "fs_base", "gs_base"]
    fields += [name for name in expected if name not in fields]
    rows = []
    for field in fields:
        left, right = _value(before, field), _value(after, field)
        if field in expected:
            left, right = expected[field].expected, expected[field].actual
        rows.append(
            ContextRow(
                label=display_name(field, finding.bits),
                before=left,
                after=right,
                note=_note(field, left, right, field in expected),
                differs=field in expected,
                main=field in _ALWAYS,
                digits=4 if field in _SELECTORS else finding.bits // 4,
            )
        )
    return rows


def _registers(bits: int) -> tuple[str, ...]:
    return GPR64 if bits == 64 else GPR64[:8]


def _value(row: Batch | None, field: str) -> int | None:
    if row is None or row.dtype.names is None or field not in row.dtype.names:
        return None
    return int(row[field][0])


def _note(field: str, before: int | None, after: int | None, differs: bool) -> str:
    if field == "rflags":
        if differs and before is not None and after is not None:
            return flags.difference(before, after)
        value = before if before is not None else after
        return flags.describe(value) if value is not None else ""
    if field == "cs":
        value = before if before is not None else after
        return f"CPL {rpl(value)}" if value is not None else ""
    return ""
