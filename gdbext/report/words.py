"""What all renderers say of a finding in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gdbext.arch import vectors
from gdbext.arch.registers import named_for
from gdbext.errors import printable
from gdbext.rules.finding import CodeLine, Finding, Writer

MATCHES: Final = {
    "exact": "the entry with the same RIP and RSP",
    "thread": "the last entry of the same thread",
    "nearest": "the nearest entry: most fields agree",
}
"""How the ledger entry was chosen."""

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))


def left(finding: Finding) -> str:
    """What stands before the place at which the context was left."""
    return "switched away" if finding.switched else "interrupted"


def compared(finding: Finding) -> str:
    """The event that the context was held against, and how it was chosen."""
    how = "where this thread switched away" if finding.switched else MATCHES.get(finding.match)
    return f"event {finding.entry}" + (f", {how}" if how else "")


def by(finding: Finding) -> str:
    """What interrupted, behind what else is said: ``, interrupt 0x20``; empty where it is about no entry."""
    return f", {vectors.name(finding.vector)}" if finding.vector is not None else ""


def differing(finding: Finding) -> str:
    """The fields that differ, joined by commas, named as in the context: ``eflags`` where that is of 32 bits."""
    return named_for(finding.bits, finding.field or "")


def last_written(writer: Writer | None, at: str, shown: Callable[[str], str] = printable) -> str:
    """Who wrote a slot last, behind its name; `at`: the instruction, `shown`: a text from outside, in
    the renderer's manner. Empty if not known."""
    if writer is None:
        return ""
    if writer.event is None:
        return f", written at {at} as the code has it"
    thread = f", for {shown(writer.thread)}" if writer.thread else ""
    return f", last written at {at}, event {writer.event} on CPU {writer.cpu}{thread}"


def elapsed(nanoseconds: int | None) -> str:
    """A time since the context was interrupted: ``+1.203 ms``; empty where it is not known."""
    if nanoseconds is None:
        return ""
    sign = "-" if nanoseconds < 0 else "+"
    return sign + duration(abs(nanoseconds))


def duration(nanoseconds: float) -> str:
    """A length of time with the unit that suits it: ``1.203 ms``."""
    for size, unit in _UNITS:
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3f} {unit}"
    return f"{nanoseconds:.0f} ns"


def code_parts(finding: Finding) -> Iterator[tuple[str, Sequence[CodeLine], int]]:
    """What is known of the finding's code: title, instructions, the address of the one in question."""
    if finding.guilty_code:
        yield "where it was seen", finding.guilty_code, finding.pc
    if finding.interrupted_code and finding.interrupted.rip != finding.pc:
        yield (
            "where it switched away" if finding.switched else "what was interrupted",
            finding.interrupted_code,
            finding.interrupted.rip,
        )
