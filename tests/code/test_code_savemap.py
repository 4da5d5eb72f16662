"""Values followed through entry and exit paths, and what the two say about one another."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.arch.frames import FRAME_FIELDS
from gdbext.code.compare import Kind, compare
from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.code.savemap import RestoreMap, SaveMap, restore_maps, save_maps, switch_maps
from gdbext.code.values import STACKS, Loaded, Place

SLOTS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


def faults(save: SaveMap, restore: RestoreMap) -> list[tuple[Kind, tuple[str, ...], int | None]]:
    return [(s.kind, s.fields, s.word) for s in compare(save, restore) if s.fault]


PUSHES = "\n".join(f"push %{name}" for name in ("rdi", "rsi", "rdx", "rcx", "rax", "r8", "r9", "r10", "r11", "rbx",
                                                "rbp", "r12", "r13", "r14", "r15"))  # fmt: skip
POPS = "\n".join(line.replace("push", "pop") for line in reversed(PUSHES.splitlines()))
PT_REGS = ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi")


def test_pt_regs_by_pushes(assemble: Any) -> None:
    snippet = assemble(f"""
    entry: testb $3, 16(%rsp)
        jz 1f
        swapgs
    1:  {PUSHES}
        xor %ebp, %ebp
        mov %rsp, %rdi
        call handler
        testb $3, 136(%rsp)
        jz 2f
        swapgs
    2:  {POPS}
        add $8, %rsp
        iretq
    handler: push %rbx
        pop %rbx
        ret
    """)
    entry = Entry(snippet["entry"], vector=14)
    saves = save_maps(snippet.code, entry)
    assert {m.origin for m in saves} == {"user", "kernel"}
    save, restore = snippet.maps(entry)
    in_words = {name: (offset - save.base) // 8 for name, offset in save.layout.items()}
    assert in_words == {name: i for i, name in enumerate((*PT_REGS, "error", "rip", "cs", "rflags", "rsp", "ss"))}
    assert save.never == ()
    assert save.area in STACKS
    assert restore.follows == {save.ended}
    assert restore.in_place
    assert compare(save, restore) == []


@pytest.mark.parametrize("helper", ["mov 24(%rdi), %r12", "push %r12\nmov 24(%rdi), %r12\npop %r12"])
def test_a_register_that_the_exit_s_helper_loads_is_not_called_lost(assemble: Any, helper: str) -> None:
    snippet = assemble(f"""
    entry: swapgs
        mov %gs:8, %rsp
        mov %rcx, (%rsp)
        mov %r11, 8(%rsp)
        mov %rbx, 16(%rsp)
        mov %rbp, 32(%rsp)
        mov %gs:16, %rsp
        call handler
        mov %gs:8, %rdi
        call load
        mov (%rdi), %rcx
        mov 8(%rdi), %r11
        mov 16(%rdi), %rbx
        mov 32(%rdi), %rbp
        swapgs
        sysretq
    handler: ret
    load: {helper}
        ret
    """)
    save, restore = snippet.maps(Entry(snippet["entry"], Gateway.SYSCALL, 0x100))
    lost = [s for s in compare(save, restore) if "r12" in s.fields and s.fault]
    assert bool(lost) == ("pop" in helper)


def test_a_frame_that_the_exit_builds_on_another_stack(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rdi
        mov %rsp, %rdi
        mov %gs:16, %rsp
        push 40(%rdi)
        push 32(%rdi)
        push 24(%rdi)
        push 16(%rdi)
        push 8(%rdi)
        push (%rdi)
        call handler
        pop %rdi
        mov %rsp, %rcx
        mov %gs:32, %rsp
        push 32(%rcx)
        push 24(%rcx)
        push 16(%rcx)
        push 8(%rcx)
        push (%rcx)
        iretq
    handler: ret
    """)
    _, restore = snippet.maps(Entry(snippet["entry"], vector=32))
    assert restore.loaded["rip"].disp == 8
    assert not restore.in_place


def test_pt_regs_with_a_register_popped_into_another(assemble: Any) -> None:
    pops = POPS.replace("pop %r9", "pop %r8", 1).replace("pop %r8\npop %rax", "pop %r9\npop %rax")
    snippet = assemble(f"entry: push $0\n{PUSHES}\ncall handler\n{pops}\nadd $8, %rsp\niretq\nhandler: nop\nret")
    assert [(k, f) for k, f, _ in faults(*snippet.maps())] == [(Kind.EXCHANGED, ("r8", "r9"))]


def test_error_code_left_on_the_stack_shifts_the_frame(assemble: Any) -> None:
    snippet = assemble(f"entry: push $0\n{PUSHES}\ncall handler\n{POPS}\niretq\nhandler: nop\nret")
    (statement,) = (s for s in compare(*snippet.maps()) if s.fault)
    assert (statement.kind, statement.fields) == (Kind.SHIFTED, FRAME_FIELDS)
    assert "pops its frame 8 bytes below the one the CPU pushed" in statement.text


def test_context_copied_to_an_area_behind_the_handler(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r10; push %r11
        push $0
        mov %rsp, %rdi
        call handler
        pop %rdi
        test %rdi, %rdi
        jnz 1f
        pop %r11; pop %r10; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax
    same: iretq
    1:  popq 88(%rdi); popq 80(%rdi); popq 72(%rdi); popq 64(%rdi); popq 40(%rdi); popq 32(%rdi)
        popq 24(%rdi); popq 16(%rdi); popq 0(%rdi)
        mov %rbx, 8(%rdi); mov %rbp, 48(%rdi)
        mov %r12, 96(%rdi); mov %r13, 104(%rdi); mov %r14, 112(%rdi)
        popq 128(%rdi); popq 160(%rdi); popq 136(%rdi); popq 56(%rdi); popq 144(%rdi)
        mov current, %rsp
        hlt
        iretq
    handler: nop
        ret
    current: .quad 0
    """)
    entry = Entry(snippet["entry"])
    before, through = save_maps(snippet.code, entry)[0], save_maps(snippet.code, entry, through=True)[0]
    assert set(before.never) == {"rbx", "rbp", "r12", "r13", "r14", "r15"}
    assert through.never == ("r15",)
    assert {name: offset // 8 for name, offset in through.layout.items()} == {
        name: number for number, name in enumerate(SLOTS) if name != "r15"
    } | {"rip": 16, "rflags": 17, "ss": 18, "cs": 20}


def test_helpers_that_save_are_followed(assemble: Any) -> None:
    snippet = assemble(f"""
    entry: cld
        call save
        mov %rsp, %rdi
        call handler
        {POPS}
        add $8, %rsp
        iretq
    save: push %rsi
        mov 8(%rsp), %rsi
        mov %rdi, 8(%rsp)
        {PUSHES.replace("push %rdi", "").replace("push %rsi", "")}
        push %rsi
        call compiled
        ret
    compiled: push %r12
        mov $1, %eax
        pop %r12
        ret
    handler: nop
        ret
    """)
    save, restore = snippet.maps(Entry(snippet["entry"], vector=14))
    assert save.never == ()
    assert compare(save, restore) == []


def test_scratch_only_stub_leaves_the_rest_to_the_compiler(assemble: Any) -> None:
    scratch = ("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11")
    pushes = "\n".join(f"push %{name}" for name in scratch)
    pops = "\n".join(f"pop %{name}" for name in reversed(scratch))
    snippet = assemble(f"""
    entry: push $0
        {pushes}
        mov %rsp, %rdi
        call handler
        {pops}
        add $8, %rsp
        iretq
    handler: push %rbx
        mov %rdi, %rbx
        pop %rbx
        ret
    """)
    save, restore = snippet.maps()
    assert set(save.never) == {"rbx", "rbp", "r12", "r13", "r14", "r15"}
    statements = compare(save, restore)
    assert {s.fields[0] for s in statements} == set(save.never)
    assert all(s.kind is Kind.COMPILER and not s.fault for s in statements)


def test_scratch_register_lost(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r11
        call handler
        pop %r11; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rax
        iretq
    handler: nop
        ret
    """)
    (fault,) = faults(*snippet.maps())
    assert fault[:2] == (Kind.LOST, ("r10",))


def test_stored_but_not_restored(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rax; push %rcx; push %rdx; push %rsi; push %rdi; push %r8; push %r9; push %r10; push %r11
        call handler
        pop %r11; add $8, %rsp; pop %r9; pop %r8; pop %rdi; pop %rsi; pop %rdx; mov $1, %ecx; add $8, %rsp; pop %rax
        iretq
    handler: nop
        ret
    """)
    assert [f[:2] for f in faults(*snippet.maps())] == [
        (Kind.NOT_RESTORED, ("rcx",)),
        (Kind.NOT_RESTORED, ("r10",)),
    ]


def test_syscall_into_an_area_and_sysret(assemble: Any) -> None:
    snippet = assemble("""
    entry: swapgs
        mov %rsp, %gs:16
        mov %gs:8, %rsp
        push %gs:16
        push %r11
        push %rcx
        push %rbx; push %rbp; push %rdi; push %rsi; push %rdx; push %r8; push %r9; push %r10
        push %r12; push %r13; push %r14; push %r15
        call handler
        pop %r15; pop %r14; pop %r13; pop %r12
        pop %r10; pop %r9; pop %r8; pop %rdx; pop %rsi; pop %rdi; pop %rbp; pop %rbx
        pop %rcx
        pop %r11
        pop %rsp
        swapgs
        sysretq
    handler: nop
        ret
    """)
    save, restore = snippet.maps(Entry(snippet["entry"], Gateway.SYSCALL))
    assert save.never == ()
    assert save.area == ("", Loaded(Place("gs", None, 8), 8))
    assert restore.loaded["rip"].disp - restore.loaded["rflags"].disp == -8
    assert compare(save, restore) == []


def test_bases_by_msr(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rax; push %rcx; push %rdx
        mov $0xc0000100, %ecx
        rdmsr
        shl $32, %rdx
        or %rdx, %rax
        push %rax
        mov $0xc0000102, %ecx
        rdmsr
        push %rdx
        push %rax
        call handler
        pop %rax
        pop %rdx
        mov $0xc0000102, %ecx
        wrmsr
        pop %rax
        mov %rax, %rdx
        shr $32, %rdx
        mov $0xc0000100, %ecx
        wrmsr
        pop %rdx; pop %rcx; pop %rax
        iretq
    handler: nop
        ret
    """)
    save, restore = snippet.maps()
    assert {"fs_base", "kernel_gs_base"} <= save.stored.keys()
    assert restore.loaded["fs_base"].disp == 16
    assert not {"fs_base"} & {f for _, fields, _ in faults(save, restore) for f in fields}


def test_area_filled_by_copying_the_frame(assemble: Any) -> None:
    snippet = assemble("""
    entry: push %rcx; push %rsi; push %rdi
        lea 24(%rsp), %rsi
        mov %gs:8, %rdi
        mov $5, %ecx
        rep movsq
        call handler
        hlt
    handler: nop
        ret
    """)
    save = save_maps(snippet.code, Entry(snippet["entry"]))[0]
    area = [p for name in ("rip", "cs", "rflags", "rsp", "ss") for p in save.stored[name] if p not in save.by_cpu]
    assert area[0].text() == "[gs:[0x8]]"
    assert [p.disp for p in area] == [0, 8, 16, 24, 32]


@pytest.mark.parametrize("bits", [64, 32])
def test_thread_switch(assemble: Any, bits: int) -> None:
    saved = ("rbp", "rbx", "r12", "r13", "r14", "r15") if bits == 64 else ("rbp", "rbx", "rsi", "rdi")
    names = saved if bits == 64 else tuple("e" + n[1:] for n in saved)
    arguments = ("%rdi", "%rsi", "%rsp") if bits == 64 else ("%eax", "%edx", "%esp")
    pushes = "; ".join(f"push %{n}" for n in names)
    pops = "; ".join(f"pop %{n}" for n in reversed(names))
    source = """
    entry: call taskswitch
        {iret}
    taskswitch: {pushes}; pushf
        mov {rsp}, ({old})
        mov ({new}), {rsp}
        popf; {pops}
        ret
    """
    fill = {"old": arguments[0], "new": arguments[1], "rsp": arguments[2], "iret": "iretq" if bits == 64 else "iret"}
    snippet = assemble(source.format(pushes=pushes, pops=pops, **fill), bits=bits)
    (function,) = explore(snippet.code, [snippet["entry"]]).switch_functions
    result = switch_maps(snippet.code, function)
    assert result is not None
    save, restore = result
    assert save.never == ()
    assert set(save.layout) == {*saved, "rflags"}
    assert set(restore.loaded) == {*saved, "rflags"}
    assert compare(save, restore) == []

    # one callee-saved register forgotten, two exchanged
    pushes = pushes.replace(f"push %{names[2]}; ", "")
    pops = pops.replace(f"pop %{names[2]}; ", "").replace(
        f"pop %{names[1]}; pop %{names[0]}", f"pop %{names[0]}; pop %{names[1]}"
    )
    snippet = assemble(source.format(pushes=pushes, pops=pops, **fill), bits=bits)
    (function,) = explore(snippet.code, [snippet["entry"]]).switch_functions
    result = switch_maps(snippet.code, function)
    assert result is not None
    found = faults(*result)
    assert (Kind.EXCHANGED, ("rbp", "rbx")) in [f[:2] for f in found]
    assert (Kind.LOST, (saved[2],), None) in found
    (lost,) = [s for s in compare(*result) if s.kind is Kind.LOST]
    where = f"the switch at {function.entry:#x}"
    assert lost.text == f"{where} never stores {names[2].upper()}, and its end at {function.ends[0]:#x} never loads it"


def test_conflicting_test_of_cs_is_not_followed(assemble: Any) -> None:
    snippet = assemble("""
    entry: testb $3, 8(%rsp)
        jnz 1f
        push %rax
        jmp 2f
    1:  push %rbx
    2:  cmpw $0x33, 16(%rsp)
        jne 3f
        push %rcx
    3:  call handler
        hlt
    handler: nop
        ret
    """)
    stored = {m.origin: set(m.stored) - set(FRAME_FIELDS) for m in save_maps(snippet.code, Entry(snippet["entry"]))}
    assert stored == {"kernel": {"rax"}, "user": {"rbx", "rcx"}}


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.sampled_from([b"\x50", b"\x58", b"\x5c", b"\x54", b"\x48\x89\xe0", b"\x48\x87\xc4", b"\x9c", b"\x9d",
                         b"\x48\xcf", b"\x0f\x01\xf8", b"\x74\xf8", b"\x75\x05", b"\xeb\xf2", b"\xe8\x05\0\0\0",
                         b"\x48\x8b\x00", b"\x48\x89\x00", b"\xf6\x44\x24\x08\x03", b"\x0f\x07", b"\xf3\x48\xa5",
                         b"\x0f\xae\x00", b"\x60", b"\x61", b"\xc9", b"\x48\x83\xc4\x10", b"\xff\xe0", b"\xcf",
                         b"\xc3"]),
        max_size=50,
    ),
    st.binary(max_size=60),
    st.sampled_from([32, 64]),
)  # fmt: skip
def test_random_code_never_raises_or_hangs(parts: list[bytes], tail: bytes, bits: int) -> None:
    data = b"".join(parts) + tail

    def read(address: int, length: int) -> bytes:
        return data[address - 0x1000 : address - 0x1000 + length] if 0x1000 <= address < 0x1000 + len(data) else b""

    code = Code(read, bits)
    entries = [Entry(0x1000), Entry(0x1004, Gateway.SYSCALL), Entry(0x1008, Gateway.SYSENTER), Entry(0x100C, vector=14)]
    reach = explore(code, entries, Limits(2000))
    saves = [found for entry in entries for found in save_maps(code, entry)]
    restores = [found for leaving in reach.exits[:4] for found in restore_maps(code, reach, leaving)]
    for save in saves[:4]:
        assert save.layout is not None
        for restore in restores[:4]:
            assert all(statement.text for statement in compare(save, restore))
    for function in reach.switch_functions:
        switch_maps(code, function)


@pytest.mark.parametrize(
    ("pops", "lost"), [("pop %rbx; pop %rbp; pop %r12", []), ("add $8, %rsp; pop %rbp; pop %r12", ["rbx"])]
)
def test_a_switch_that_ends_in_a_jump_to_where_the_thread_goes_on(assemble: Any, pops: str, lost: list[str]) -> None:
    """As a compiler's inline assembly has it: RIP is kept beside RSP, and the pops lie where it leads."""
    snippet = assemble(f"""
    entry: call switch_to
        iretq
    switch_to: push %r12; push %rbp; push %rbx
        lea on(%rip), %rax
        mov %rax, (%rdi)
        mov %rsp, 8(%rdi)
        mov 8(%rsi), %rsp
        jmp *(%rsi)
    on: {pops}
        ret
    """)
    (function,) = explore(snippet.code, [snippet["entry"]]).switch_functions
    result = switch_maps(snippet.code, function)
    assert result is not None
    told = [s for s in compare(*result) if s.fault and set(s.fields) & {"rbx", "rbp", "r12"}]
    assert [name for statement in told for name in statement.fields] == lost
