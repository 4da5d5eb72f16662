"""The nrk save and restore paths: as printed, made whole, and with other faults put in."""

from __future__ import annotations

from typing import Any

from gdbext.code.compare import Kind, compare
from gdbext.code.paths import explore
from gdbext.code.values import Loaded, Place

# The save and restore paths that the nrk text prints, with the lines it leaves out: the stub's two pushes (its
# "2*8(%rsp)" counts on them), the labels, the iretq.
NRK_SAVE = """
entry:
    pushq $0
    pushq $32
    pushq %rax
    rdgsbase %rax
    movq 0x8(%rax), %rax
    movq %rbx,  1*8(%rax)
    movq %rcx,  2*8(%rax)
    movq %rdx,  3*8(%rax)
    movq %rsi,  4*8(%rax)
    movq %rdi,  5*8(%rax)
    movq %rbp,  6*8(%rax)
    movq %r8,   8*8(%rax)
    movq %r9,   9*8(%rax)
    movq %r10, 10*8(%rax)
    movq %r11, 11*8(%rax)
    movq %r12, 12*8(%rax)
    movq %r13, 13*8(%rax)
    movq %r14, 14*8(%rax)
    movq %r15, 15*8(%rax)
    popq %r15
    movq %r15, 0*8(%rax)
    movq 5*8(%rsp), %r15
    movq %r15, 7*8(%rax)
    movq 2*8(%rsp), %r15
    movq %r15, 16*8(%rax)
    {more}
    rdfsbase %r15
    movq %r15, 19*8(%rax)
    fxsave 24*8(%rax)
    callq handle_generic_exception
"""
NRK_RESTORE = """
restore:
    movq 19*8(%rdi), %rsi
    wrfsbase %rsi
    fxrstor 24*8(%rdi)
    movq  0*8(%rdi), %rax
    movq  1*8(%rdi), %rbx
    movq  2*8(%rdi), %rcx
    movq  3*8(%rdi), %rdx
    movq  4*8(%rdi), %rsi
    movq  6*8(%rdi), %rbp
    movq  8*8(%rdi), %r8
    movq  9*8(%rdi), %r9
    movq 10*8(%rdi), %r10
    movq 11*8(%rdi), %r11
    movq 12*8(%rdi), %r12
    movq 13*8(%rdi), %r13
    movq 14*8(%rdi), %r14
    movq 15*8(%rdi), %r15
    pushq 18*8(%rdi)
    pushq 7*8(%rdi)
    pushq 17*8(%rdi)
    pushq {cs}*8(%rdi)
    pushq 16*8(%rdi)
    movq 5*8(%rdi), %rdi
    iretq
handle_generic_exception:
    jmp *%rdx
"""
NRK_ORDER = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
COPY_WORD = "movq {word}*8(%rsp), %r15; movq %r15, {slot}*8(%rax);"


def test_nrk_as_printed(assemble: Any) -> None:
    snippet = assemble(NRK_SAVE.format(more="") + NRK_RESTORE.format(cs=19))
    save, restore = snippet.maps(None, "restore")

    slots = {name: offset // 8 for name, offset in save.layout.items()}
    assert slots == {name: i for i, name in enumerate(NRK_ORDER)} | {"rip": 16, "fs_base": 19, "simd": 24}
    assert save.area == ("", Loaded(Place("gs", None, 8), 8))
    assert save.never == ("cs", "rflags", "ss")
    assert restore.layout == save.layout | {"rflags": 17 * 8, "ss": 18 * 8, "cs": 19 * 8}

    statements = compare(save, restore)
    assert [(s.kind, s.fields, s.word) for s in statements] == [
        (Kind.CLASH, ("cs", "fs_base"), 19),
        (Kind.NEVER_STORED, ("cs",), 19),
        (Kind.NEVER_STORED, ("rflags",), 17),
        (Kind.NEVER_STORED, ("ss",), 18),
    ]
    (rflags,) = [s for s in statements if s.fields == ("rflags",)]
    (leaving,) = explore(snippet.code, [snippet["restore"]]).exits
    assert rflags.text == (
        f"the entry path at {snippet['entry']:#x} never stores RFLAGS; "
        f"the exit path at {leaving.address:#x} loads it from slot 17 ([rdi+0x88])"
    )
    assert statements[0].text.endswith("loads CS and the FS base from the same slot 19 ([rdi+0x98])")


def test_nrk_made_whole_has_no_fault(assemble: Any) -> None:
    more = "".join(COPY_WORD.format(word=w, slot=s) for w, s in ((4, 17), (6, 18), (3, 20)))
    snippet = assemble(NRK_SAVE.format(more=more) + NRK_RESTORE.format(cs=20))
    save, restore = snippet.maps(None, "restore")
    assert save.never == ()
    assert compare(save, restore) == []
    assert save.layout == restore.layout


def test_nrk_with_two_slots_exchanged(assemble: Any) -> None:
    more = "".join(COPY_WORD.format(word=w, slot=s) for w, s in ((4, 17), (6, 18), (3, 20)))
    restore_text = NRK_RESTORE.format(cs=20).replace("12*8(%rdi), %r12", "13*8(%rdi), %r12")
    restore_text = restore_text.replace("13*8(%rdi), %r13", "12*8(%rdi), %r13")
    snippet = assemble(NRK_SAVE.format(more=more) + restore_text)
    (statement,) = compare(*snippet.maps(None, "restore"))
    assert (statement.kind, statement.fields) == (Kind.EXCHANGED, ("r12", "r13"))
    assert "R12 and R13 are exchanged" in statement.text


def test_nrk_that_stores_two_registers_in_one_slot(assemble: Any) -> None:
    more = "".join(COPY_WORD.format(word=w, slot=s) for w, s in ((4, 17), (6, 18), (3, 19)))
    snippet = assemble(NRK_SAVE.format(more=more) + NRK_RESTORE.format(cs=20))
    save, restore = snippet.maps(None, "restore")
    found = [(s.kind, s.fields, s.word) for s in compare(save, restore)]
    assert (Kind.CLASH, ("cs", "fs_base"), 19) in found
    assert (Kind.NEVER_STORED, ("cs",), 20) in found


def test_flags_of_the_handler_in_the_slot(assemble: Any) -> None:
    more = "pushfq; popq 17*8(%rax);" + "".join(COPY_WORD.format(word=w, slot=s) for w, s in ((6, 18), (3, 20)))
    snippet = assemble(NRK_SAVE.format(more=more) + NRK_RESTORE.format(cs=20))
    (statement,) = compare(*snippet.maps(None, "restore"))
    assert (statement.kind, statement.fields, statement.word) == (Kind.REPLACED, ("rflags",), 17)
    assert "stores rflags as it is in the handler, not the interrupted RFLAGS" in statement.text
