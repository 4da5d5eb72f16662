"""CW404 beside the register that was lost: which of the two comes first."""

from __future__ import annotations

from gdbext.rules.engine import Engine
from tests.rules.rows import batch, context, entry, exit_, stamp


def found(old: dict[str, int], new: dict[str, int], resumed: dict[str, int]) -> list[tuple[str, str | None]]:
    """What is found, in order, when `old` was interrupted and resumed, then `new` was, and `resumed` comes back."""
    engine = Engine()
    engine.feed(stamp(batch(entry(old), exit_(old), entry(new), exit_(resumed))))
    return [(finding.code, finding.field) for finding in engine.findings]


def test_flags_lost_alone_are_the_cause_although_the_thread_once_had_them() -> None:
    """A loop comes by the same place with every register the same but the flags: nothing shows an old context."""
    old, new = context(rflags=0x202), context(rflags=0x246)
    assert found(old, new, old) == [("CW102", "rflags"), ("CW404", "rflags")]


def test_a_register_lost_alone_comes_before_its_stale_slot_where_no_path_is_known() -> None:
    assert found(context(), context(rbx=77), context()) == [("CW101", "rbx"), ("CW404", "rbx")]


def test_registers_that_came_back_together_are_an_old_context() -> None:
    first, *rest = found(context(), context(rbx=77, rcx=78), context())
    assert first == ("CW404", "rcx")
    assert rest == [("CW101", "rcx,rbx")]
