"""CW402, CW403: an iret that pops what was never a frame."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.events.row import Batch
from gdbext.rules.engine import Engine
from tests.rules.judged import judged
from tests.rules.rows import KERNEL_RIP, Flag, batch, context, entry, exit_, stamp

FRAME = 0xFFFF_FFFF_8030_0000


def found(*rows: Batch) -> list[tuple[str, str | None, int]]:
    """The codes found, their fields and events."""
    return [(finding.code, finding.field, finding.event) for finding in judged(*rows)]


def ran(user: bool = True) -> tuple[Batch, Batch]:
    return entry(context(5, user=user)), exit_(context(5, user=user))


def pops(*words: int, **changes: Any) -> Batch:
    """An iret of these words, seen as the probe sees it."""
    names = ("rip", "cs", "rflags", "rsp", "ss")
    fields: dict[str, Any] = dict(zip(names, words, strict=False))
    fields |= {"cs": fields["cs"] & 0xFFFF, "ss": fields["ss"] & 0xFFFF}
    return exit_(
        context(9, user=False) | fields, frame=FRAME - 0x800, stack=(*words, *[0] * (8 - len(words))), **changes
    )


GARBAGE = (0xFFFF_FFFF_8010_0994, 0x293, 0x0, 0x1, 0x6)


def test_words_of_a_stack_that_somebody_else_used() -> None:
    """Neither the privilege level in its CS nor its IF says anything."""
    assert found(*ran(), pops(*GARBAGE)) == [("CW403", "cs", 3)]


def test_a_pointer_for_cs() -> None:
    assert found(*ran(user=False), pops(1, KERNEL_RIP, 0x246, 2, 0x18)) == [("CW403", "cs", 3)]


@pytest.mark.parametrize("cs", [0, 3])
def test_a_null_selector_for_cs(cs: int) -> None:
    assert found(*ran(user=False), pops(KERNEL_RIP, cs, 0x246, 2, 0x18)) == [("CW403", "cs", 3)]


def test_flags_that_there_are_not() -> None:
    assert found(*ran(user=False), pops(0x10, 0x246, 0x707FF8, 0x5, 0)) == [("CW403", "cs", 3)]


def test_kernel_code_without_a_stack() -> None:
    astray = KERNEL_RIP + 0x920, 0x10, 0x6, 0x46, 0x818
    assert found(*ran(user=False), pops(*astray)) == [("CW403", "ss", 3)]
    assert found(*ran(user=False), pops(*astray[:4], 0x18)) == []
    assert found(*ran(user=False), pops(*astray[:4], 0)) == []
    window = context(5, user=False, rsp=0x7000, ss=0x818)
    assert found(*ran(user=False), entry(window), exit_(window, match=3)) == []


def test_a_frame_a_word_further_up() -> None:
    rows = stamp(batch(*ran(), pops(0x9999, 0x400000 << 8, 0x33, 0x246, 0x7000, 0x2B)))
    (finding,) = Engine().feed(rows)
    assert finding.code == "CW402"
    assert "1 word further up" in finding.cause


def test_a_frame_a_word_further_down() -> None:
    (finding,) = Engine().feed(stamp(batch(*ran(user=False), pops(0x23, 0x202, 0x70FFF8, 0x1B, 0))))
    assert finding.code == "CW402"
    assert "1 word further down" in finding.cause


@pytest.mark.parametrize("flags", [0x200, 0x202, 0, 0x246 | 1 << 40])
def test_a_first_return_to_user_code(flags: int) -> None:
    codes = [code for code, _, _ in found(*ran(user=False), pops(0x400000, 0x1B, flags, 0x7000, 0x23))]
    assert not {"CW402", "CW403"} & set(codes)


def test_a_wrong_pair_of_selectors_is_no_garbage() -> None:
    codes = [code for code, _, _ in found(*ran(user=False), pops(0x400000, 0x1B, 0x202, 0x7000, 0x10))]
    assert codes == ["CW604"]


def test_what_a_kernel_keeps_above_a_saved_cs() -> None:
    codes = [code for code, _, _ in found(*ran(user=False), pops(0x400000, 0x1B | 1 << 32, 0x202, 0x7000, 0x23))]
    assert not {"CW402", "CW403"} & set(codes)


def test_nothing_is_known_yet() -> None:
    assert "CW403" not in [code for code, _, _ in found(pops(*GARBAGE))]


def test_virtual_8086_code_has_any_cs() -> None:
    codes = [code for code, _, _ in found(*ran(user=False), pops(0x100, 0x1234, 0x20202, 0xFFFE, 0x1237, mode=32))]
    assert not {"CW402", "CW403"} & set(codes)


def test_a_frame_that_was_not_read() -> None:
    assert "CW403" not in [code for code, _, _ in found(*ran(), pops(*GARBAGE, flags=Flag.UNREADABLE))]


def test_a_context_that_is_known_with_another_cs() -> None:
    ctx = context(9)
    assert found(*ran(), entry(ctx), exit_(ctx | {"cs": 0x30})) == [("CW603", "cs", 4)]
