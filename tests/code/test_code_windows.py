"""Windows from bytes: half-switched stretches of entry and exit paths."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway, Limits, explore
from gdbext.code.windows import Reason, Stack, Window, find, windows


def found(snippet: Any, *entries: Entry | int) -> list[Window]:
    return windows(snippet.code, explore(snippet.code, entries))


def inside(window: Window, snippet: Any) -> set[str]:
    """The labels that lie in `window`."""
    return {name for name, address in snippet.symbols.items() if window.at(address)}


SYSCALL = """
    entry: swapgs
    a1: mov %rsp, %gs:16
    a2: mov %gs:8, %rsp
    a3: push %rcx
        push %r11
        call handler
        pop %r11
        pop %rcx
    b1: mov %gs:16, %rsp
    b2: swapgs
    b3: sysretq
    b4: nop
    handler: swapgs
    h1: mov %eax, %gs
    h2: swapgs
    h3: ret
"""


def test_syscall_entry_and_exit(assemble: Any) -> None:
    snippet = assemble(SYSCALL)
    entering, leaving, loading = found(snippet, Entry(snippet["entry"], Gateway.SYSCALL))

    assert entering.reason is Reason.SYSCALL_ENTRY
    assert inside(entering, snippet) == {"entry", "a1", "a2"}
    assert entering.landings == (snippet["a3"],)
    assert entering.state_at(snippet["entry"]) == "kernel code, user RSP, user GS active"
    assert entering.state_at(snippet["a2"]) == "kernel code, user RSP, kernel GS active"
    assert entering.state_at(snippet["a3"]) == ""

    assert leaving.reason is Reason.EXIT
    assert inside(leaving, snippet) == {"b2", "b3"}
    assert leaving.opened_by == (snippet["b1"], snippet["b2"])
    assert leaving.exits == (snippet["b3"],)
    assert leaving.state_at(snippet["b2"]) == "kernel code, user RSP, kernel GS active"
    assert leaving.state_at(snippet["b3"]) == "kernel code, user RSP, user GS active"

    assert loading.reason is Reason.GS_LOAD
    assert inside(loading, snippet) == {"h1", "h2"}
    assert loading.landings == (snippet["h3"],)


def test_page_table_switch_through_rsp_is_no_stack(assemble: Any) -> None:
    snippet = assemble("""
    entry: swapgs
        mov %rsp, %gs:16
    c1: mov %cr3, %rsp
    c2: and $~0x1000, %rsp
        mov %rsp, %cr3
    c3: mov %gs:8, %rsp
    c4: push %rax
        call *%rax
        hlt
    """)
    (window,) = found(snippet, Entry(snippet["entry"], Gateway.SYSCALL))
    assert inside(window, snippet) == {"entry", "c1", "c2", "c3"}
    assert window.landings == (snippet["c4"],)
    assert [s.stack for s in window.stretches] == [Stack.USER, Stack.USER, Stack.NOTHING]


def test_a_kernel_without_swapgs_has_only_its_stack_to_switch(assemble: Any) -> None:
    snippet = assemble("""
    entry: mov %rsp, scratch
    e1: mov kernel_stack, %rsp
    e2: push %rcx
        call handler
        pop %rcx
    e3: pop %rsp
    e4: sysretq
    interrupt: push %rax
        call handler
        pop %rax
    i1: iretq
    handler: ret
    scratch: .quad 0
    kernel_stack: .quad 0
    """)
    entering, leaving = found(snippet, Entry(snippet["entry"], Gateway.SYSCALL), snippet["interrupt"])
    assert inside(entering, snippet) == {"entry", "e1"}
    assert entering.state_at(snippet["entry"]) == "kernel code, user RSP, kernel GS active"
    assert "GS" not in entering.why
    assert inside(leaving, snippet) == {"e4"}


INTERRUPT = """
    v32: push $0
        push $32
        jmp common
    v33: push $33
        jmp common
    other: iretq
    common: testb $3, 24(%rsp)
        jz 1f
    c1: swapgs
    1:
    c2: push %rax
        {body}
        pop %rax
        testb $3, 24(%rsp)
        jz 2f
    x1: swapgs
    x2: add $16, %rsp
        iretq
    2:
    k1: add $16, %rsp
    k2: iretq
    handler: ret
"""


@pytest.mark.parametrize("body", ["call handler", "incl 0(%rax)"])
def test_interrupt_entries_share_one_window(assemble: Any, body: str) -> None:
    snippet = assemble(INTERRUPT.format(body=body))
    entering, leaving = found(snippet, snippet["v32"], snippet["v33"], snippet["other"])

    assert entering.reason is Reason.INTERRUPT_ENTRY
    assert inside(entering, snippet) == {"v32", "v33", "common", "c1"}
    assert entering.opened_by == (snippet["v32"], snippet["v33"])
    assert entering.landings == (snippet["c2"],)
    assert entering.state_at(snippet["v32"]).startswith("kernel code, kernel RSP, user GS active (if")

    assert leaving.reason is Reason.EXIT
    assert inside(leaving, snippet) == {"x2"}
    assert leaving.opened_by == (snippet["x1"],)
    assert leaving.state_at(snippet["x2"]) == "kernel code, kernel RSP, user GS active"


def test_an_exit_shared_with_returns_to_the_kernel_is_decided_by_gs(assemble: Any) -> None:
    snippet = assemble("""
    entry: call save
        call handler
        testb $3, 8(%rsp)
        jz restore
        swapgs
    x1: nop
    restore: pop %rax
    r1: iretq
    handler: ret
    save: testb $3, 16(%rsp)
        jz 1f
    s1: swapgs
    1:  ret
    """)
    all_windows = found(snippet, snippet["entry"])
    entering, leaving = all_windows
    assert inside(entering, snippet) == {"entry", "save", "s1"}
    assert inside(leaving, snippet) == {"x1", "restore", "r1"}
    assert find(all_windows, snippet["x1"], user_gs=False) is leaving
    assert find(all_windows, snippet["r1"], user_gs=True) is leaving
    assert find(all_windows, snippet["r1"]) is leaving
    assert find(all_windows, snippet["r1"], user_gs=False) is None
    assert find(all_windows, snippet["handler"]) is None


def test_paranoid_nmi_with_wrgsbase(assemble: Any) -> None:
    snippet = assemble("""
    nmi: push %rax
        call paranoid
    n1: call handler
        wrgsbase %rbx
    n2: pop %rax
    n3: iretq
    paranoid: rdgsbase %rbx
        lea area(%rip), %rax
    p1: wrgsbase %rax
    p2: ret
    handler: ret
    area: .quad 0
    """)
    entering, leaving, handler = found(snippet, Entry(snippet["nmi"], vector=2, ist=1))
    assert inside(entering, snippet) == {"nmi", "paranoid", "p1"}
    assert entering.landings == (snippet["p2"],)
    assert inside(leaving, snippet) == {"n2", "n3"}
    assert not any(stretch.certain for stretch in leaving.stretches)
    assert "the write of the GS base" in leaving.why
    assert handler.reason is Reason.IST_HANDLER
    assert inside(handler, snippet) == {"nmi", "n1", "n2", "n3"}
    assert handler.exits == (snippet["n3"],)
    assert "NMI" in handler.why


def test_ist_handler_ends_where_it_leaves_its_stack_or_joins_others(assemble: Any) -> None:
    snippet = assemble("""
    df: push %rax
        jz away
    d1: jmp shared
    away: mov %gs:8, %rsp
    d2: call handler
        iretq
    pf: push %rax
    shared: pop %rax
        iretq
    handler: ret
    """)
    (window,) = found(snippet, Entry(snippet["df"], vector=8, ist=1), Entry(snippet["pf"], vector=14))
    assert inside(window, snippet) == {"df", "d1", "away"}
    assert "IST stack 1" in window.why


def test_shadows_and_sysenter_of_ia32(assemble: Any) -> None:
    snippet = assemble(
        """
    entry: mov 4(%esp), %esp
    s1: push %eax
        mov %eax, %ss
    m1: mov %ebx, %esp
    m2: pop %eax
        sti
    t1: sysexit
    """,
        bits=32,
    )
    entering, first, second = found(snippet, Entry(snippet["entry"], Gateway.SYSENTER))
    assert inside(entering, snippet) == {"entry"}
    assert entering.landings == (snippet["s1"],)
    assert entering.state_at(snippet["entry"]) == "kernel code, RSP on the SYSENTER stack, kernel GS active"
    assert (first.reason, inside(first, snippet), first.landings) == (Reason.SHADOW, {"m1"}, (snippet["m2"],))
    assert (inside(second, snippet), second.exits) == ({"t1"}, (snippet["t1"],))


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\x0f\x01\xf8", b"\x48\xcf", b"\x0f\x07", b"\x5c", b"\x74\x04", b"\xeb\xf0", b"\xfb", b"\x90",
                         b"\x8e\xe8", b"\xf3\x48\x0f\xae\xd8", b"\xe8\x02\0\0\0", b"\x48\x89\xc4", b"\x0f\x20\xdc"]),
        max_size=60,
    ),
    st.binary(max_size=40),
)  # fmt: skip
def test_random_code_never_raises_and_windows_are_consistent(parts: list[bytes], tail: bytes) -> None:
    data = b"".join(parts) + tail

    def read(address: int, length: int) -> bytes:
        return data[address - 0x1000 : address - 0x1000 + length] if 0x1000 <= address < 0x1000 + len(data) else b""

    code = Code(read, 64)
    reach = explore(code, [Entry(0x1000, Gateway.SYSCALL), Entry(0x1003), Entry(0x1010, vector=2)], Limits(2000))
    for window in windows(code, reach):
        assert window.stretches
        assert window.why
        for stretch in window.stretches:
            assert stretch.start < stretch.end
            assert window.state_at(stretch.start)
            assert find([window], stretch.start) is window
