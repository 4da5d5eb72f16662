"""The code layer on the bundled guests' kernels: what their bytes show without running them."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from gdbext.arch.flags import DF
from gdbext.arch.vectors import NMI, PF
from gdbext.code.compare import Kind, Statement, compare, pairs
from gdbext.code.disasm import Code
from gdbext.code.flags_on_entry import flags_on_entry
from gdbext.code.graph import Graph
from gdbext.code.paths import Entry, Gateway, Reach, explore
from gdbext.code.savemap import restore_maps, save_maps, switch_maps
from gdbext.code.windows import Reason, windows

GUESTS = Path(__file__).parents[1] / "guests"
TIMER, INT80 = 32, 128


class Kernel:
    """A guest's kernel, built, with its code and the entries of its IDT."""

    def __init__(self, directory: Path, style: str, *defines: str) -> None:
        make = ["make", "-s", "-C", str(GUESTS), f"OUT={directory}", "ARCH=x86_64", f"STYLE={style}"]
        subprocess.run([*make, f"DEFS={' '.join(defines)}"], check=True, timeout=120)
        image = directory / "kernel.elf"
        self._image = image.read_bytes()
        names = subprocess.run(["nm", image], check=True, capture_output=True, text=True).stdout
        rows = (line.split() for line in names.splitlines())
        self.symbols = {row[2]: int(row[0], 16) for row in rows if len(row) == 3}
        self.code = Code(self._read, 64)
        self.entries = self._entries()
        self.reach: Reach = explore(self.code, self.entries)

    def _read(self, address: int, length: int) -> bytes:
        """Bytes of the loadable segments (ELF-64 program headers)."""
        (offset,) = struct.unpack_from("<Q", self._image, 32)
        (count,) = struct.unpack_from("<H", self._image, 56)
        for number in range(count):
            kind, _, start, base, _, size = struct.unpack_from("<IIQQQQ", self._image, offset + 56 * number)
            if kind == 1 and base <= address < base + size:
                return self._image[start + address - base :][: min(length, base + size - address)]
        raise OSError("unmapped")

    def _entries(self) -> list[Entry]:
        stubs = {vector: self.symbols["vector_stubs"] + 16 * vector for vector in range(256)}
        stubs |= {NMI: self.symbols["nmi_entry"], INT80: self.symbols["int80_entry"]}
        stubs[PF] = self.symbols.get("page_fault_entry", stubs[PF])
        gates = [Entry(a, vector=v, ist=int(v == NMI), soft=v == INT80) for v, a in stubs.items() if v not in (1, 8)]
        return [*gates, Entry(self.symbols["syscall_entry"], Gateway.SYSCALL)]

    def faults(self) -> list[Statement]:
        """All faults in pairs of entry and exit paths and in thread switches, each once."""
        graph = Graph(self.reach)
        restores = [m for leaving in self.reach.exits for m in restore_maps(self.code, self.reach, leaving, graph)]
        tried = [e for e in self.entries if e.vector in (0, NMI, PF, TIMER, INT80) or e.gateway is Gateway.SYSCALL]
        saves = [m for entry in tried for through in (False, True) for m in save_maps(self.code, entry, through)]
        found = [s for save, restore in pairs(saves, restores) for s in compare(save, restore)]
        for function in self.reach.switch_functions:
            maps = switch_maps(self.code, function)
            found += compare(*maps) if maps else []
        return list({(s.kind, s.fields): s for s in found if s.fault}.values())


@pytest.mark.parametrize(
    ("style", "defines", "expected"),
    [
        ("nrk", [], []),
        ("osdev", [], []),
        ("nrk", ["BUG_NRK_RFLAGS"], [(Kind.NEVER_STORED, ("rflags",), 17)]),
        ("nrk", ["BUG_GPR_LOST"], [(Kind.NEVER_STORED, ("r13",), 13)]),
        ("nrk", ["BUG_GPR_SWAPPED"], [(Kind.EXCHANGED, ("r14", "r15"), 15)]),
        ("nrk", ["BUG_IF_CLEAR"], [(Kind.REPLACED, ("rflags",), 17)]),
        ("osdev", ["BUG_CALLEE_LOST"], [(Kind.LOST, ("rbx",), None)]),
        ("osdev", ["BUG_SYSCALL_CLOBBER"], [(Kind.NOT_RESTORED, ("rdx",), 5)]),
        ("osdev", ["BUG_FRAME_UNBALANCED"], [(Kind.SHIFTED, ("rip", "cs", "rflags", "rsp", "ss"), 9)]),
    ],
)
def test_save_and_restore_paths(
    tmp_path: Path, style: str, defines: list[str], expected: list[tuple[Kind, tuple[str, ...], int | None]]
) -> None:
    kernel = Kernel(tmp_path, style, *defines)
    assert {at for following in kernel.reach.successors.values() for at in following} <= kernel.reach.successors.keys()
    assert [(s.kind, s.fields, s.word) for s in kernel.faults()] == expected


@pytest.mark.parametrize("style", ["nrk", "osdev"])
def test_windows(tmp_path: Path, style: str) -> None:
    kernel = Kernel(tmp_path, style)
    found = [w for w in windows(kernel.code, kernel.reach) if w.reason is not Reason.SHADOW]
    syscall = kernel.symbols["syscall_entry"]
    (entering,) = [w for w in found if w.reason is Reason.SYSCALL_ENTRY]
    assert entering.opened_by == (syscall,)
    assert entering.state_at(syscall) == "kernel code, user RSP, user GS active"
    (sysret,) = [e.address for e in kernel.reach.exits if e.how == "sysret"]
    (leaving,) = [w for w in found if sysret in w.exits]
    assert leaving.state_at(sysret) == "kernel code, user RSP, user GS active"

    # every exit to user mode has its window, and every gate that swaps; the kernel proper lies in none
    without = {e.address for e in kernel.reach.exits} - {a for w in found if w.reason is Reason.EXIT for a in w.exits}
    assert len(without) == (1 if style == "osdev" else 0)  # the page fault's return to the kernel
    gates = {a for w in found if w.reason is Reason.INTERRUPT_ENTRY for a in w.opened_by}
    assert gates == {e.address for e in kernel.entries if e.gateway is Gateway.INTERRUPT}
    assert not [name for name in ("kernel_main", "handle_trap", "print", "taskswitch_asm") if name in kernel.symbols
                and any(w.at(kernel.symbols[name]) for w in found)]  # fmt: skip


def test_a_kernel_without_swapgs_has_windows_for_its_stack_only(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path, "nrk", "NO_SWAPGS")
    found = [w for w in windows(kernel.code, kernel.reach) if w.reason not in (Reason.SHADOW, Reason.IST_HANDLER)]
    assert [w.reason for w in found] == [Reason.SYSCALL_ENTRY, Reason.EXIT]
    assert not any(stretch.user_gs for w in found for stretch in w.stretches)


def test_direction_flag(tmp_path: Path) -> None:
    for defines, leaks in (([], False), (["BUG_DF_LEAK"], True)):
        kernel = Kernel(tmp_path / str(leaks), "nrk", *defines)
        timer = next(e for e in kernel.entries if e.vector == TIMER)
        assert (DF in flags_on_entry(kernel.code, kernel.reach, timer)) is leaks
