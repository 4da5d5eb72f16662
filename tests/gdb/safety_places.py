"""Sourced into GDB by the tests of the safety mode: brings the guest clean-osdev to places in and in front of windows,
and tells what a command did. It moves the guest unguarded."""

from __future__ import annotations

import json

import gdb

from gdbext.code.listing import listing
from gdbext.code.windows import Reason, Window, find
from gdbext.gdb.extension import Extension
from gdbext.gdb.register import registered

BACK = 3
"""Instructions between a place in front of a window and the window's edge."""
SYSCALL, INT_80 = b"\x0f\x05", b"\xcd\x80"


class Reach(gdb.Breakpoint):  # type: ignore[misc]  # GDB has no types
    """Stops without a word."""

    def __init__(self, address: int) -> None:
        super().__init__(f"*{address:#x}", gdb.BP_HARDWARE_BREAKPOINT, internal=True)
        self.silent = True

    def stop(self) -> bool:
        return True


def extension() -> Extension:
    return registered[0]


def symbol(name: str) -> int:
    return int(gdb.parse_and_eval(f"(unsigned long)&{name}"))


def pc() -> int:
    return int(gdb.newest_frame().pc())


def word(register: str, offset: int) -> int:
    raw = gdb.selected_inferior().read_memory(int(gdb.parse_and_eval(f"(unsigned long)${register}")) + offset, 8)
    return int.from_bytes(bytes(raw), "little")


def to(*addresses: int) -> None:
    """Let the guest run until it is before one of `addresses`."""
    pass_shadow()
    with extension().safety.unguarded():
        points = [Reach(address) for address in addresses]
        try:
            gdb.execute("continue", to_string=True)
        finally:
            for point in points:
                point.delete()
    assert pc() in addresses, hex(pc())


def sites(after: int, instruction: bytes) -> set[int]:
    """Where a program makes its system calls: the one that returns to `after`, and others of its kind around."""
    memory = gdb.selected_inferior()
    found = {after - len(instruction)}
    start = symbol("calls_main")
    raw = bytes(memory.read_memory(start, after - start)) if 0 < after - start < 0x4000 else b""
    at = raw.find(instruction)
    while at >= 0:
        found.add(start + at)
        at = raw.find(instruction, at + 1)
    return found


def window(reason: Reason, held: int) -> Window:
    """The window of that kind that holds an address."""
    return next(w for w in extension().windows.all() if w.reason is reason and w.at(held) is not None)


def exit_of(name: str, how: str) -> int:
    """The exit instruction of a function."""
    start = symbol(name)
    machine = extension().windows.machine()
    exits = machine.reach.exits if machine is not None and machine.reach is not None else []
    return min(e.address for e in exits if e.how == how and e.address >= start)


def before(address: int, count: int) -> int:
    machine = extension().windows.machine()
    code = machine.code if machine is not None else None
    assert code is not None
    return listing(code, address, before=count, after=0)[0].address


def shadow() -> None:
    """Before the branch that skips the sti of alloc_page, where it is made to go on to it."""
    to(before(shadowed(), 1))
    gdb.execute("set var $eflags = $eflags & ~0x40")


def pass_shadow() -> None:
    """Let the guest, which never runs that sti, go on as if it had not been brought to it."""
    found = extension().windows.all()
    if any(w.reason is Reason.SHADOW for w in found) and pc() in (shadowed(), before(shadowed(), 1)):
        gdb.execute(f"set var $pc = {shadowed() + 1}")


def shadowed() -> int:
    """The address of the sti in alloc_page."""
    start = symbol("alloc_page")
    found = (w.opened_by[0] for w in extension().windows.all() if w.reason is Reason.SHADOW)
    return int(min(address for address in found if address > start))


def inside(kind: str) -> None:
    """Stand in a window."""
    if kind == "syscall-entry":
        to(symbol("syscall_entry") + 3)
    elif kind == "interrupt-entry":
        to(symbol("int80_entry"))
    elif kind == "exit (sysret)":
        to(exit_of("syscall_entry", "sysret"))
    elif kind == "exit (iret)":
        to(exit_of("int80_entry", "iret"))
    elif kind == "shadow":
        shadow()
        gdb.execute(f"set var $pc = {shadowed() + 1}")
        extension().safety.look()
    else:
        in_nmi()
        to(word("rsp", 0))
    tell()


def in_front(kind: str) -> None:
    """Stand in front of one. For an entry: at the user's instruction that leads to it."""
    if kind == "syscall-entry":
        to(symbol("syscall_entry"))
        to(*sites(int(gdb.parse_and_eval("(unsigned long)$rcx")), SYSCALL))
    elif kind == "interrupt-entry":
        to(symbol("int80_entry"))
        to(*sites(word("rsp", 0), INT_80))
    elif kind == "exit (sysret)":
        opened = window(Reason.EXIT, exit_of("syscall_entry", "sysret")).opened_by
        to(before(min(opened), BACK))
    elif kind == "exit (iret)":
        to(before(window(Reason.EXIT, exit_of("int80_entry", "iret")).opened_by[0], BACK))
    elif kind == "shadow":
        shadow()
    else:
        in_nmi()
    tell()


def in_nmi() -> None:
    """At the first instruction of the function that the NMI's stub calls."""
    gdb.execute("monitor nmi", to_string=True)
    to(symbol("handle_paranoid"))


def target(kind: str) -> int:
    """An address in the window that `kind` means."""
    if kind == "syscall-entry":
        return symbol("syscall_entry") + 3
    if kind == "interrupt-entry":
        return symbol("int80_entry")
    if kind == "exit (sysret)":
        return exit_of("syscall_entry", "sysret")
    if kind == "exit (iret)":
        return exit_of("int80_entry", "iret")
    if kind == "shadow":
        return shadowed() + 1
    return symbol("nmi_entry")


def tell(kind: str = "") -> None:
    """What is so now, as a line of JSON."""
    found = extension().windows.all()
    here = find(found, pc())
    edges = extension().windows.edges(True)
    facts = {
        "pc": pc(),
        "breakpoints": [b.number for b in gdb.breakpoints()],
        "window": here.reason.value if here else "",
        "edge": pc() in edges,
        "target": target(kind) if kind else 0,
        "calls": bool(gdb.parameter("may-call-functions")),
    }
    print("FACTS " + json.dumps(facts))
