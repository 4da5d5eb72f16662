"""Kernel code that is interrupted and goes on elsewhere on purpose, told by the frame; and wide linear addresses."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from gdbext.arch import vectors
from gdbext.events.row import Batch
from gdbext.rules.fixups import Fixups, parse
from gdbext.rules.policy import Policy
from tests.rules.rows import How, context, entry, exit_
from tests.rules.test_resume import codes

COPY = context(5, user=False)
"""Kernel code that copies from user memory."""
TAIL = COPY | {"rip": COPY["rip"] + 0x20}
"""Its byte-wise end, where a fixup leads."""
FRAME = COPY["rsp"] - 40


def fault(ctx: dict[str, Any]) -> Any:
    return entry(ctx, How.EXCEPTION, frame=FRAME)


def leave(ctx: dict[str, Any], **changes: Any) -> Any:
    return exit_(ctx | changes, frame=FRAME)


OTHER = {name: 0x777 + at for at, name in enumerate(("rax", "rbx", "rsi", "rdi", "r12"))}
"""What a later copy from the same depth of the stack has in its registers."""


def test_a_fixup_to_where_another_copy_faulted() -> None:
    first = [fault(COPY), leave(TAIL), fault(TAIL), leave(TAIL, rip=TAIL["rip"] + 8, rax=1)]
    again = [fault(COPY | OTHER), leave(TAIL | OTHER)]
    assert codes(*first, *again) == []
    assert codes(*first, *again[:1], leave(TAIL | OTHER, r13=5, r14=6, r15=7)) == [("CW101", "r13,r14,r15")]


def test_a_fixup_that_comes_again_with_the_same_registers() -> None:
    """The second fixup resumes, bit for bit, what faulted in the first copy's tail."""
    known = linked((COPY["rip"], TAIL["rip"]), (TAIL["rip"], TAIL["rip"] + 8))

    def copy() -> list[Batch]:
        return [fault(COPY), leave(TAIL), fault(TAIL), leave(TAIL, rip=TAIL["rip"] + 8)]

    assert codes(*(row for _ in range(6) for row in copy()), policy=known) == []


def test_a_fixup_may_set_two_registers() -> None:
    assert codes(fault(COPY), leave(TAIL, rax=-14 & 0xFFFFFFFFFFFFFFFF, rcx=3)) == []


SLID = -0x1240_0000
"""From where it is linked to where the kernel runs."""


def linked(*pairs: tuple[int, int]) -> Policy:
    return Policy(fixups=Fixups(frozenset((at - SLID, to - SLID) for at, to in pairs)))


def test_a_fixup_goes_where_the_exception_table_says() -> None:
    known = linked((COPY["rip"], TAIL["rip"]))
    assert codes(fault(COPY), leave(TAIL), policy=known) == []
    assert codes(fault(COPY), leave(TAIL, rip=TAIL["rip"] + 1), policy=known) == [("CW101", "rip")]
    assert codes(fault(TAIL), leave(COPY), policy=known) == [("CW101", "rip")]


def test_what_the_exception_table_does_not_say() -> None:
    known = linked((COPY["rip"], TAIL["rip"]))
    patched = entry(TAIL, How.EXCEPTION, frame=FRAME, vector=vectors.BP)
    assert codes(patched, leave(TAIL, rip=TAIL["rip"] + 4), policy=known) == []
    module = TAIL | {"rip": 0xFFFFFFFFC0100000}
    assert codes(fault(module), leave(module, rip=module["rip"] + 4), policy=known) == []


def test_an_exception_table_is_read() -> None:
    table = struct.pack("<iii", 0x10, 0x20, 3) + struct.pack("<iii", -0x100, -0xF0, 1) + b"\0" * 5
    assert list(parse(0x1000, table, 64)) == [(0x1010, 0x1024), (0xF0C, 0xF20)]
    assert list(parse(0x10, table, 32)) == [(0x20, 0x34), (0xFFFFFF1C, 0xFFFFFF30)]


def test_a_frame_that_another_was_pushed_across_is_nobody_s() -> None:
    """Breakpoints in 32-bit kernel code that is being patched: the handler carries out the call that was there, for
    which it moves the frame a word down. What was interrupted is never resumed, and its frame's place comes again."""
    top = 0xC1D9_BD80

    def at(stack: int, **registers: int) -> dict[str, Any]:
        return context(5, user=False, rip=0xCE09_EEF1, rsp=stack) | registers

    def patched(frame: int, **registers: int) -> list[Batch]:
        ctx, called = at(frame + 12, **registers), at(frame + 8, **registers) | {"rip": 0xCE06_09DC}
        return [
            entry(ctx, How.EXCEPTION, frame=frame, vector=vectors.BP, mode=32),
            exit_(called, frame=frame - 4, mode=32),
        ]

    deep, shallow = {name: 0x777 + n for n, name in enumerate(("rax", "rcx", "rdx", "rdi"))}, {"rax": 1, "rdi": 2}
    assert codes(*patched(top - 4, **deep), *patched(top, **shallow)) == []


def test_an_interrupt_has_no_fixup() -> None:
    assert codes(entry(COPY, frame=FRAME), leave(TAIL)) == [("CW101", "rip")]


@pytest.mark.parametrize("stack", [0xFF56E2D700013DD8, 0xFFFFC90000013DD8])
def test_what_is_canonical_depends_on_the_paging(stack: int) -> None:
    user = context(rip=0x00F0_0000_0040_0000)
    kernel = context(7, user=False, rsp=stack)
    seen = [entry(kernel, frame=stack - 40), exit_(kernel, frame=stack - 40)]
    expected = [] if stack >> 47 != 0x1FFFF else [("CW601", "rip")]
    assert codes(*seen, entry(user), exit_(user)) == expected
    assert codes(*seen, exit_(context(rip=0x0F00_0000_0040_0000))) == [("CW601", "rip")]
