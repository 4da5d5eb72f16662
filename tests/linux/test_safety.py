"""Windows of a real kernel, held against a reading of its disassembly, and skips out of them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import capstone
import pytest

from gdbext.errors import EnvironmentUnusable
from gdbext.qemu import guests, images
from gdbext.qemu.machine import Machine
from tests.gdb.sessions import Typed

pytestmark = [pytest.mark.guest, pytest.mark.gdb, pytest.mark.slow]

ENTRY = "entry_SYSCALL_64"
RETURN = "swapgs_restore_regs_and_return_to_usermode"
STEPS = 10
BEARABLE = 0.5
"""Seconds of GDB's own time that a step may take."""
_TELL = """python
import json
from gdbext.gdb.register import registered
machine = registered[0].windows.machine()
facts = {"handlers": {v: h.address for h in machine.tables.handlers() for v in h.vectors},
         "windows": [{"reason": w.reason.value, "opened_by": w.opened_by, "landings": w.landings, "exits": w.exits,
                      "stretches": [(s.start, s.end) for s in w.stretches]} for w in machine.windows]}
print("FACTS " + json.dumps(facts))
end"""


class Reading:
    """The guest's code, disassembled straight from its memory."""

    def __init__(self, gdb: Typed) -> None:
        self._gdb = gdb
        self._capstone = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def at(self, address: int) -> Any:
        said = self._gdb.type(f"python print(bytes(gdb.selected_inferior().read_memory({address}, 15)).hex())")
        return next(self._capstone.disasm(bytes.fromhex(said.split()[0]), address, 1))

    def follow(self, start: int, last: Callable[[Any], bool], seen: dict[int, Any] | None = None) -> dict[int, Any]:
        """Every instruction from `start` on by every branch, up to and including those that are `last`."""
        seen = {} if seen is None else seen
        address = start
        while address not in seen:
            insn = seen[address] = self.at(address)
            if last(insn):
                break
            jump = re.fullmatch(r"0x[0-9a-f]+", insn.op_str) if insn.mnemonic.startswith("j") else None
            if jump and insn.mnemonic != "jmp":
                self.follow(int(jump[0], 16), last, seen)
            address = int(jump[0], 16) if jump and insn.mnemonic == "jmp" else address + insn.size
        return seen


@contextlib.contextmanager
def linux() -> Iterator[tuple[Typed, images.Symbols, list[dict[str, Any]]]]:
    """linux-amd64 in the middle of its work, under GDB without an image."""
    guest = guests.find("linux-amd64")
    try:
        kernel = guests.build(guest)
    except EnvironmentUnusable as error:
        pytest.skip(str(error))
    with Machine(tuple(guest.command(kernel)), gdbstub=True) as machine:
        machine.cont()
        lines: list[str] = []
        deadline = time.monotonic() + 60
        while not any("guest: start" in line for line in lines):
            assert time.monotonic() < deadline, lines[-5:]
            lines += machine.serial()
            time.sleep(0.02)
        machine.stop()
        with Typed("set architecture i386:x86-64", f"target remote {machine.gdb}") as gdb:
            said = gdb.type(_TELL, timeout=60)
            found = re.search(r"FACTS (\{.*)", said)
            assert found, said
            facts = json.loads(found[1])
            symbols = images.load(kernel).symbols
            assert any(symbols.settle(int(vector), address) for vector, address in facts["handlers"].items())
            yield gdb, symbols, facts["windows"]


def addresses(reading: Reading, window: dict[str, Any]) -> set[int]:
    """Of the instructions in a window."""
    found = set()
    for address, end in window["stretches"]:
        while address < end:
            found.add(address)
            address += reading.at(address).size
    return found


def switches(insn: Any) -> bool:
    return bool(insn.mnemonic == "mov" and insn.op_str.startswith("rsp, "))


def ends(insn: Any) -> bool:
    return insn.mnemonic in ("sysretq", "iretq")


def holding(windows: list[dict[str, Any]], reason: str, opener: int) -> dict[str, Any]:
    return next(w for w in windows if w["reason"] == reason and opener in w["opened_by"])


def stand(gdb: Typed, address: int) -> None:
    gdb.type(f"ctx safe override thbreak *{address:#x}")
    said = gdb.type("continue", timeout=60)
    assert value(gdb, "$rip") == address, said


def worked(gdb: Typed) -> float:
    """Seconds of CPU time that GDB took so far: the same, nearly, on a machine that is busy with other things."""
    return float(gdb.type("python import time; print(time.process_time())"))


def value(gdb: Typed, expression: str) -> int:
    return int(gdb.type(f"output/x {expression}"), 16) & ((1 << 64) - 1)


def test_windows_are_those_of_the_disassembly_and_skips_arrive_where_they_say() -> None:
    with linux() as (gdb, symbols, windows):
        reading = Reading(gdb)
        entry, back = symbols.address(ENTRY), symbols.address(RETURN)
        assert entry is not None
        assert back is not None

        inside = reading.follow(entry, switches)
        window = holding(windows, "syscall-entry", entry)
        assert addresses(reading, window) == set(inside)
        last = max(a for a, insn in inside.items() if switches(insn))
        assert window["landings"] == [last + inside[last].size]

        body = reading.follow(entry, ends)
        (switch,) = [a for a, insn in body.items() if (insn.mnemonic, insn.op_str) == ("pop", "rsp")]
        leaving = reading.follow(switch + body[switch].size, ends)
        sysret = holding(windows, "exit", switch)
        assert addresses(reading, sysret) == set(leaving)

        returning = reading.follow(back, ends)
        swaps = [a for a, insn in returning.items() if insn.mnemonic == "swapgs"]
        assert swaps
        iret = holding(windows, "exit", swaps[0])
        read: set[int] = set()
        for opener in iret["opened_by"]:
            read |= set(reading.follow(opener + 3, ends))
        assert set(swaps) <= set(iret["opened_by"])
        assert addresses(reading, iret) == read

        before = worked(gdb)
        for _ in range(STEPS):
            gdb.type("stepi")
        assert worked(gdb) - before < STEPS * BEARABLE

        skips(gdb, entry + 3, window, sysret, swaps[0] + 3, iret)


def skips(
    gdb: Typed, entering: int, window: dict[str, Any], sysret: dict[str, Any], swapped: int, iret: dict[str, Any]
) -> None:
    """From a stop in each window."""
    stand(gdb, entering)
    assert f"Arrived at {window['landings'][0]:#x}" in gdb.type("ctx skip")
    stand(gdb, sysret["exits"][0])
    target = value(gdb, "$rcx")
    assert f"Arrived at {target:#x}" in gdb.type("ctx skip")
    assert value(gdb, "$cs") & 3 == 3
    for address in (swapped, iret["exits"][0]):
        stand(gdb, address)
        target = value(gdb, "*(unsigned long *)$rsp")
        said = gdb.type("ctx skip")
        assert f"Arrived at {target:#x}" in said, said
        assert value(gdb, "$rip") == target
        assert " is in no window" in gdb.type("ctx status")
