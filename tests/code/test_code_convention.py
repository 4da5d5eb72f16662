"""Whether called functions keep registers."""

from __future__ import annotations

import pytest

from gdbext.code.convention import keeps_none
from gdbext.code.paths import explore
from tests.code.conftest import Assemble

ENTRY = "entry: call one; call two; call three; iretq\n"
LOSES = "movl $7, %ebx; addq %rbx, %rax; ret\n"
MOVES = "test %rdi, %rdi; jz 1f; leaq 1(%rdi), %r12; addq %r12, %rax; 1: ret\n"
KEEPS = "pushq %rbx; movl $7, %ebx; call four; popq %rbx; ret\n"
KEEPS_BY_THUNK = "pushq %rbx; movl $7, %ebx; call four; popq %rbx; jmp four\n"
KEEPS_BY_MOVES = "subq $8, %rsp; movq %r13, (%rsp); movl $1, %r13d; movq (%rsp), %r13; addq $8, %rsp; ret\n"
RESTORES = "movq (%rdi), %rbx; movq 8(%rdi), %r12; popq %rax; popq %r13; jmp *%rax\n"
CLEARS = "xorl %ebx, %ebx; xorl %r12d, %r12d; ret\n"
SWITCHES = "movq %rsp, (%rdi); movq %rsi, %rsp; movl $1, %ebx; ret\n"
DIES = "movl $7, %ebx; 1: hlt; jmp 1b\n"
NEITHER = "movl $7, %ecx; addq %rcx, %rax; ret\n"
SPILLS = "three: cmpq 16(%r14), %rsp; ja 1f; movq %rbx, 8(%rsp); call four; movq 8(%rsp), %rbx; jmp three; 1: ret\n"


@pytest.mark.parametrize(
    ("bodies", "none"),
    [
        ((LOSES, MOVES, NEITHER), True),
        ((LOSES, MOVES, KEEPS), False),
        ((LOSES, MOVES, KEEPS_BY_THUNK), False),
        ((LOSES, MOVES, KEEPS_BY_MOVES), False),
        ((LOSES, NEITHER, NEITHER), False),
        ((LOSES, RESTORES, CLEARS), False),
        ((LOSES, SWITCHES, DIES), False),
    ],
)
def test_what_nearly_all_functions_do_is_the_convention(
    assemble: Assemble, bodies: tuple[str, str, str], none: bool
) -> None:
    named = (f"{name}: {body}" for name, body in zip(("one", "two", "three"), bodies, strict=True))
    code = assemble(ENTRY + "".join(named) + "four: ret\n")
    assert keeps_none(code.code, explore(code.code, [code["entry"]])) is none


def test_an_argument_put_away_while_the_stack_grows_is_not_kept(assemble: Assemble) -> None:
    code = assemble(ENTRY + "one: " + LOSES + "two: " + MOVES + SPILLS + "four: ret\n")
    assert keeps_none(code.code, explore(code.code, [code["entry"]]))
