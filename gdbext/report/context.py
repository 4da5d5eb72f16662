"""The contexts of a finding, as typed rows for any renderer: the interrupted and the resumed one beside each other, or
the one there is, with what was expected and what was found apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gdbext.arch import flags
from gdbext.arch.addresses import rpl
from gdbext.arch.registers import GPR64, display_name
from gdbext.events.held import lacking
from gdbext.events.row import Batch, Kind
from gdbext.rules.finding import Finding

_FRAME: Final = ("rip", "cs", "rflags", "rsp", "ss")
_ALWAYS: Final = frozenset({"rip", "rsp", "rflags", "cs"})
_SELECTORS: Final = frozenset({"cs", "ss", "ds", "es", "fs", "gs"})
_PAIRS: Final = {
    (Kind.ENTRY, Kind.EXIT): ("interrupted", "resumed"),
    (Kind.SWITCH_OUT, Kind.SWITCH_IN): ("switched out", "switched in"),
}
_ALONE: Final = {
    Kind.ENTRY: "interrupted", Kind.EXIT: "resumed", Kind.SWITCH_OUT: "switched out", Kind.SWITCH_IN: "switched in",
}  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class Fields:
    """A table of fields: its title, what its columns are (the second "" where ``before`` alone is there), its rows."""

    title: str
    headings: tuple[str, str]
    rows: list[ContextRow]


def contexts(finding: Finding) -> list[Fields]:
    """The contexts of the finding, fields in the order of the frame, the general registers, the bases.

    One table of two columns, where the ledger entry and the exit that was held against it are there; else what was
    expected and found, and behind it the one context there is.
    """
    left, right = finding.entry_row, finding.row
    pair = _PAIRS.get((_kind(left), _kind(right)))
    if pair is not None and left is not None and right is not None:
        return [Fields("contexts", pair, _paired(finding, left, right))]
    alone = next((row for row in (right, left) if row is not None and row["rip"][0] == finding.interrupted.rip), right)
    tables = [_apart(finding)] if finding.differences else []
    if alone is not None:
        heading = _ALONE.get(_kind(alone), "running")
        rows = [_row(finding, field, value, None, False) for field, value in _values(alone, _fields(finding)).items()]
        tables.append(Fields(f"{heading} context", (heading, ""), rows))
    return [table for table in tables if table.rows]


def _apart(finding: Finding) -> Fields:
    """What differs from no context, but from what should be, as far as that is known."""
    if all(difference.expected is None for difference in finding.differences):
        found = [_row(finding, d.field, d.actual, None, True) for d in finding.differences]
        return Fields("found", ("found", ""), found)
    both = [_row(finding, d.field, d.expected, d.actual, True) for d in finding.differences]
    return Fields("expected and found", ("expected", "found"), both)


def _paired(finding: Finding, left: Batch, right: Batch) -> list[ContextRow]:
    expected = {difference.field: difference for difference in finding.differences}
    fields = _fields(finding)
    fields += [name for name in expected if name not in fields]
    before, after = _values(left, fields), _values(right, fields)
    rows = []
    for field in fields:
        if field in expected:
            rows.append(_row(finding, field, expected[field].expected, expected[field].actual, True))
        elif field in before or field in after:
            rows.append(_row(finding, field, before.get(field), after.get(field), False))
    return rows


def _row(finding: Finding, field: str, before: int | None, after: int | None, differs: bool) -> ContextRow:
    return ContextRow(
        label=display_name(field, finding.bits),
        before=before,
        after=after,
        note=_note(field, before, after, differs),
        differs=differs,
        main=field in _ALWAYS,
        digits=4 if field in _SELECTORS else finding.bits // 4,
    )


def _fields(finding: Finding) -> list[str]:
    general = GPR64 if finding.bits == 64 else GPR64[:8]
    return [*_FRAME, *(name for name in general if name != "rsp"), "fs_base", "gs_base"]


def _kind(row: Batch | None) -> int:
    return int(row["kind"][0]) if row is not None else 0


def _values(row: Batch, fields: list[str]) -> dict[str, int]:
    """Those of the fields that the row holds."""
    missing, names = lacking(row), row.dtype.names or ()
    return {field: int(row[field][0]) for field in fields if field in names and field not in missing}


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
