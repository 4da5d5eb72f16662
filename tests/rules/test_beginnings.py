"""Contexts that begin where others did: the short way past them tells nothing that the long way would not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.rules import resume
from gdbext.rules.engine import Engine
from tests.rules.rows import Flag, How, batch, context, entry, exit_, stamp

BEGINNING = 0x402250
PLACES = st.sampled_from([BEGINNING, BEGINNING - 2, BEGINNING + 5, BEGINNING + 0x1000, 0x405678])
FRAMES = st.sampled_from([0xFFFFFFFF80300000, 0xFFFFFFFF80300008, 0xFFFFFFFF80300FD8])
_EVENT = st.tuples(
    st.sampled_from(["interrupt", "exception", "call", "iret", "sysret"]),
    st.integers(1, 3),  # whose registers
    st.fixed_dictionaries(
        {"rip": PLACES, "frame": FRAMES, "cr3": st.sampled_from([0x100000, 0x200000])},
        optional={
            "rsp": st.sampled_from([0x7F1000, 0x7F2000]),
            "fs_base": st.just(0x5000),
            "flags": st.just(Flag.LINEAR32),
        },
    ),
)


def _row(event: tuple[str, int, dict[str, Any]]) -> Any:
    kind, seed, changes = event
    ctx = context(seed) | {name: value for name, value in changes.items() if name not in ("frame", "flags")}
    told = {name: changes[name] for name in ("frame", "flags") if name in changes}
    if kind in ("iret", "sysret"):
        return exit_(ctx, How.IRET if kind == "iret" else How.SYSRET, **(told if kind == "iret" else {}))
    how = {"interrupt": How.INTERRUPT, "exception": How.EXCEPTION, "call": How.SYSCALL}[kind]
    return entry(ctx, how, **({} if kind == "call" else told))


def _judged(rows: Any, cut: int) -> tuple[list[tuple[str, str | None, int]], int, int]:
    engine = Engine()
    engine.feed(rows[:1])
    for at in range(1, len(rows), cut):
        engine.feed(rows[at : at + cut])
    found = [(finding.code, finding.field, finding.event) for finding in engine.findings]
    return found, engine.counts.unmatched, len(engine.pending())


@settings(deadline=None, max_examples=50)
@given(st.lists(_EVENT, min_size=4, max_size=24), st.integers(1, 24))
def test_the_short_way_finds_what_the_long_way_finds(events: list[tuple[str, int, dict[str, Any]]], cut: int) -> None:
    _both_ways(_known(BEGINNING), *map(_row, events), cut=cut)


@pytest.mark.parametrize("to", [BEGINNING, 0x403001])
def test_an_instruction_that_was_emulated_may_end_where_contexts_begin(to: int) -> None:
    before = context(1, rip=to - 2)
    found = _both_ways(_known(to), entry(before, How.EXCEPTION), exit_(before | {"rip": to}))
    assert found == ([], 2, 0)  # it is over


def test_a_thread_that_lost_its_base_may_stand_where_contexts_begin() -> None:
    before, other = context(1, rip=BEGINNING), context(2)
    rows = entry(before), exit_(other), entry(other), exit_(before | {"fs_base": 0})
    found = _both_ways(_known(BEGINNING), *rows)
    assert [code for code, *_ in found[0]] == ["CW104"]


@pytest.mark.parametrize(("words", "moved"), [(-1, -8), (-1, 0x10000), (1, 8)])
def test_a_frame_that_is_missed_may_hold_an_address_where_contexts_begin(words: int, moved: int) -> None:
    """Words too low or too high, on the stack the CPU pushed it to or in a copy."""
    ctx = context(rflags=0x247)
    memory = [BEGINNING, *(ctx[name] for name in ("rip", "cs", "rflags", "rsp", "ss")), 0, 0, 0, 0]
    popped = memory[1 + words : 9 + words]
    wrong = dict(zip(("rip", "cs", "rflags", "rsp", "ss"), popped, strict=False))
    wrong |= {"cs": popped[1] & 0xFFFF | 3, "rflags": 0x246, "ss": 0}
    after = exit_(ctx | wrong, frame=0xFFFFFFFF80300000 + moved, stack=[popped])
    found = _both_ways(_known(wrong["rip"]), entry(ctx, How.EXCEPTION), after)
    assert [code for code, *_ in found[0]] == ["CW301"]


def _known(rip: int) -> Any:
    """Contexts are known to begin at `rip`."""
    return exit_(context(9, rip=rip))


def _both_ways(*rows: Any, cut: int = 100) -> tuple[list[tuple[str, str | None, int]], int, int]:
    numbered = stamp(batch(*rows))
    long = _judged(numbered, cut)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "MANY", 1)
        assert _judged(numbered, cut) == long
    return long


@pytest.mark.parametrize("late", [True, False])
def test_two_threads_that_begin_on_one_stack(late: bool) -> None:
    """Their maker gives both the same, one after the other; and the first is slow to begin: its CPU was not run."""
    maker = context()
    calls = [maker | {"rip": 0x500000, "rsp": 0x7E0000, "rbx": number} for number in (1, 2)]
    first, second = (
        made | {"rsp": 0x690000, "rax": 0, "gs_base": base} for made, base in zip(calls, (5, 6), strict=True)
    )
    made = [row for one in calls for row in (entry(one, How.SYSCALL, rax=56), exit_(one, How.SYSRET, rax=9))]
    waits = entry(maker | {"rip": 0x500100, "rsp": 0x7E0000}, How.SYSCALL, rax=35)
    begins = entry(second, cpu=1)
    before, behind = exit_(second, How.SYSRET, cpu=1), exit_(second, cpu=1)
    starts = exit_(first, How.SYSRET)
    rows = (*made, waits, before, begins, *((starts, behind) if late else (behind, starts)))
    engine = Engine()
    numbered = stamp(batch(*rows))
    for at in range(len(numbered)):
        engine.feed(numbered[at : at + 1])
    assert engine.findings == []
    assert engine.counts.identical == 3
    assert len(engine.pending()) == 1
