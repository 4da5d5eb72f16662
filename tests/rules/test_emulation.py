"""Instructions that the kernel carries out for user code, in virtual-8086 mode above all."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.events.row import Batch, Flag
from tests.rules.rows import How, context, entry, exit_
from tests.rules.test_resume import codes

VM = 1 << 17
SMALL = {"mode": 32, "flags": Flag.LINEAR32}
OLD: dict[str, Any] = (
    context() | SMALL | {"cs": 0x1000, "ss": 0x1000, "ds": 0x1000, "es": 0x1000, "fs": 0, "gs": 0x1400}
)
OLD |= {"rip": 0x13, "rsp": 0xFF00, "rflags": VM | 0x246}


def fault(ctx: dict[str, Any], **changes: Any) -> Batch:
    return entry(ctx | changes, How.EXCEPTION, vector=13)


def monitor(again: int = 0, **changes: Any) -> list[Batch]:
    """`int 21h` at 13h is reflected to 100h, its `iret` at 101h carried out, `pushf` at 15h, too; RBX is `again`."""
    ctx = OLD | {"rbx": 0x7000 + again}
    service = {"rip": 0x100, "rsp": 0xFEFA}
    return [
        fault(ctx),
        exit_(ctx | service | changes),
        fault(ctx | service | {"rip": 0x101, "rdx": 9}),
        exit_(ctx | {"rip": 0x15, "rdx": 9}),
        fault(ctx | {"rip": 0x15, "rdx": 9}),
        exit_(ctx | {"rip": 0x16, "rsp": 0xFEFE, "rdx": 9}),
    ]


def test_what_a_monitor_carries_out_is_over() -> None:
    assert codes(*monitor(1), *monitor(2), *monitor(3)) == []


def test_a_monitor_may_not_change_segments() -> None:
    assert codes(*monitor(1, gs=0x1401)) == [("CW103", "gs")]


def test_virtual_8086_code_is_user_code_whatever_its_cs() -> None:
    ctx = OLD | {"cs": 0x1000}
    assert codes(entry(ctx), exit_(ctx | {"rflags": VM | 0x46})) == [("CW602", "rflags")]


def test_vm_in_a_context_that_had_it_not_is_a_leak() -> None:
    ctx = context() | SMALL
    assert ("CW603", "rflags") in codes(entry(ctx), exit_(ctx | {"rflags": VM | 0x246}))
    assert codes(exit_(ctx | {"rflags": VM | 0x246})) == [("CW603", "rflags")]
    assert codes(exit_(OLD)) == []


@pytest.mark.parametrize("result", [0, 77])
def test_the_same_instruction_carried_out_again_is_not_resumed(result: int) -> None:
    """Two instructions side by side are carried out time and again, the second one's exception is never resumed."""
    first, second = context(rip=0x400000), context(rip=0x400003)
    rows = []
    for turn in range(3):
        now = {"rbx": turn + 1, "rcx": turn + 7}
        rows += [entry(first | now, How.EXCEPTION, vector=6), exit_(second | now | {"rax": result})]
        rows += [
            entry(second | now | {"rax": result}, How.EXCEPTION, vector=6),
            exit_(second | now | {"rip": 0x400006}),
        ]
    assert codes(*rows) == []


def test_an_interrupt_behind_an_exception_is_resumed_whole() -> None:
    ctx = context(rip=0x400003)
    carried_out = [entry(context(rip=0x400000), How.EXCEPTION, vector=6), exit_(ctx)]
    assert codes(*carried_out, entry(ctx), exit_(ctx | {"rdi": 3})) == [("CW101", "rdi")]


def test_an_instruction_has_few_results() -> None:
    """A context that goes on behind its instruction with all registers moved was not restored; CPUID changes four."""
    ctx = context(rip=0x400000)
    four = {"rax": 1, "rbx": 2, "rcx": 3, "rdx": 4}
    assert codes(entry(ctx, How.EXCEPTION, vector=13), exit_(ctx | four | {"rip": 0x400002})) == []
    five = four | {"rsi": 5}
    assert codes(entry(ctx, How.EXCEPTION, vector=13), exit_(ctx | five | {"rip": 0x400002})) == [
        ("CW101", "rax,rcx,rdx,rbx,rsi")
    ]


RDTSC, CPUID, UD2 = 0x310F << 16, 0xA20F << 16, 0x0B0F << 16
"""As the four bytes in front of where the exit goes."""


@pytest.mark.parametrize(
    ("bytes_in_front", "changed", "expected"),
    [
        (RDTSC, ("rax", "rdx"), []),
        (RDTSC, ("rax", "rbx", "rdx"), [("CW101", "rbx")]),
        (CPUID, ("rax", "rbx", "rcx", "rdx"), []),
        (UD2, ("rbx",), []),
        (0, ("rbx",), []),
    ],
)
def test_the_results_are_the_instructions(
    bytes_in_front: int, changed: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    ctx = context(rip=0x400000)
    results = dict.fromkeys(changed, 5)
    back = exit_(ctx | results | {"rip": 0x400002, "value": bytes_in_front})
    assert codes(entry(ctx, How.EXCEPTION, vector=13), back) == expected
