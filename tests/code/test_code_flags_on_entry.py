"""DF, AC and NT of the interrupted code in handler code."""

from __future__ import annotations

from typing import Any

import pytest

from gdbext.arch.flags import AC, DF, NT
from gdbext.code.flags_on_entry import flags_on_entry
from gdbext.code.paths import Entry, Gateway, explore

TAIL = """
    out: iretq
    handler: call deeper
        ret
    deeper: ret
    helper: cld
        push %rax
        pop %rax
        ret
    chooser: cmp $6, %rax
        ja deeper
    choice: jmp *chooser(, %rax, 8)
"""


def leaks(snippet: Any, entry: Entry, cleared: int | None = None, origin: str = "") -> dict[int, str]:
    reach = explore(snippet.code, [entry])
    names = {address: name for name, address in snippet.symbols.items()}
    return {bit: names[at] for bit, at in flags_on_entry(snippet.code, reach, entry, cleared, origin).items()}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("push %rax; call handler", {DF: "handler", AC: "handler"}),
        ("cld; call handler", {AC: "handler"}),
        ("clac; cld; call handler", {}),
        ("call helper; clac; call handler", {}),
        ("here: call *%rax", {DF: "here", AC: "here"}),
        ("pushq $2; popfq; call handler", {}),
        ("pushfq; andq $~0x44400, (%rsp); popfq; call handler", {}),
        ("pushfq; popfq; call handler", {DF: "handler", AC: "handler"}),
        ("jz 1f; cld; 1: clac; call handler", {DF: "handler"}),
        ("here: rep stosq; clac; cld; call handler", {DF: "here"}),
        ("movsd %xmm0, %xmm1; clac; cld; call handler", {}),
        ("push %rax; pop %rax", {}),
        ("call chooser", {DF: "choice", AC: "choice"}),
        ("cld; clac; call chooser", {}),
        ("jmp *chooser(, %rax, 8)", {}),
    ],
)
def test_flags_of_an_interrupt_entry(assemble: Any, body: str, expected: dict[int, str]) -> None:
    snippet = assemble(f"entry: {body}\n" + TAIL)
    assert leaks(snippet, Entry(snippet["entry"])) == expected


def test_syscall_depends_on_fmask(assemble: Any) -> None:
    snippet = assemble("entry: push %rax; call handler\n" + TAIL)
    entry = Entry(snippet["entry"], Gateway.SYSCALL)
    assert set(leaks(snippet, entry)) == {DF, AC, NT}
    assert leaks(snippet, entry, cleared=DF | AC | NT) == {}


def test_ia32(assemble: Any) -> None:
    snippet = assemble("entry: pusha; cld; call handler; popa; iret\nhandler: call deeper\nret\ndeeper: ret", bits=32)
    assert set(leaks(snippet, Entry(snippet["entry"]))) == {AC}


BY_CS = """
    entry: pushq $0; pushq $14; testb $3, 24(%rsp)
        jz from_kernel
        CLEARS
        call handler
        iretq
    from_kernel: clac
        call handler
        iretq
"""


@pytest.mark.parametrize(
    ("clears", "origin", "expected"),
    [
        ("cld; clac", "user", {}),
        ("cld; clac", "kernel", {DF: "handler"}),
        ("cld; clac", "", {DF: "handler"}),
        ("clac", "user", {DF: "handler"}),
        ("cld", "kernel", {DF: "handler"}),
    ],
)
def test_a_test_of_the_saved_cs_tells_who_comes_there(
    assemble: Any, clears: str, origin: str, expected: dict[int, str]
) -> None:
    snippet = assemble(BY_CS.replace("CLEARS", clears) + TAIL)
    assert leaks(snippet, Entry(snippet["entry"]), origin=origin) == expected
