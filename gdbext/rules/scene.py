"""What stood around a finding: the steps from the save of its context to its resume, and the code at both ends.

It is taken when the finding is made, by the live run and by its replay alike, so that both can show the same picture.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.addresses import MASK32
from gdbext.arch.descriptors import decode_idt
from gdbext.code.disasm import Code
from gdbext.code.listing import listing, text
from gdbext.events.columns import Columns
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import is_user
from gdbext.rules.areas import AreaJudge
from gdbext.rules.finding import CodeLine, Finding, Step
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History
from gdbext.rules.laststores import Write

BEFORE: Final = 4
"""Instructions shown before the one in question."""
AFTER: Final = 2
"""Instructions shown behind it."""

_EXITS: Final = {
    How.IRET: "iret",
    How.SYSRET: "sysret",
    How.SYSEXIT: "sysexit",
    How.TASK: "task switch",
    How.FAR: "far return",
    How.NEAR: "ret behind popf",
}


class Scenes:
    """Adds steps and code to the findings of one engine."""

    def __init__(self, guest: GuestView, history: History, areas: AreaJudge) -> None:
        self._guest = guest
        self._history = history
        self._areas = areas
        self._codes: dict[tuple[int, int], Code] = {}
        self._tables: dict[int, int] = {}
        """Where the IDT of a vCPU lies, as far as it was seen loaded: linear addresses."""

    def feed(self, batch: Columns) -> None:
        """Note the interrupt tables that are loaded."""
        for at in np.flatnonzero(batch["kind"] == Kind.IDT).tolist():
            self._tables[int(batch["cpu"][at])] = int(batch["addr"][at])

    def add(self, finding: Finding) -> None:
        """Complete ``steps``, ``guilty_code`` and ``interrupted_code``."""
        row, entry = finding.row, finding.entry_row
        if row is None:
            return
        finding.steps = self._steps(finding, entry, row) if entry is not None else ()
        finding.guilty_code = self._code(finding.pc, finding.pc_symbol, _mode(row))
        base = self._base(entry if entry is not None else row)
        if base is not None and self._readable(finding, row):
            place = finding.interrupted
            finding.interrupted_code = self._code(place.rip, place.symbol, finding.bits, base)

    # Steps

    def _steps(self, finding: Finding, entry: Batch, row: Batch) -> tuple[Step, ...]:
        first, last = int(entry["seq"][0]), int(row["seq"][0])
        rows = self._history.before(last)
        rows = rows[np.searchsorted(rows["seq"], first + 1) :]
        mine = rows[rows["cpu"] == entry["cpu"][0]]
        first_of_all = "interrupted by " + vectors.name(int(entry["vector"][0]))
        found = [self._step(entry, entry, "switches away" if finding.switched else first_of_all)]
        left = _left(mine)
        saved = mine if left is None else mine[mine["seq"] < left["seq"][0]]
        swaps = saved[saved["kind"] == Kind.SWAPGS]
        if len(swaps) and not finding.switched:
            found.append(self._step(swaps[:1], entry, "swapgs"))
        found += self._saves(finding, entry, saved)
        if left is not None:
            found.append(self._step(left, entry, "the CPU turns to another context"))
        found += self._writer(finding, entry)
        if row["kind"][0] == Kind.EXIT:
            how = _EXITS.get(int(row["how"][0]), "the exit")
            where = "" if row["cpu"][0] == entry["cpu"][0] else f" on CPU {int(row['cpu'][0])}"
            found.append(self._step(row, entry, f"{how} resumes it{where}"))
        elif finding.switched:
            found.append(self._step(row, entry, "comes back"))
        return tuple(sorted(found, key=lambda step: step.event))

    def _saves(self, finding: Finding, entry: Batch, rows: Batch) -> list[Step]:
        """The stores into the context's save area before the CPU turned away."""
        area = self._areas.area_of(entry, finding.event) if self._areas.known(finding.event) else None
        if area is None:
            return []
        stores = rows[rows["kind"] == Kind.STORE]
        stores = stores[(stores["addr"] >= area.start) & (stores["addr"] < area.start + area.size)]
        if not len(stores):
            return []
        count = len(stores)
        words = "one word" if count == 1 else f"{count} words"
        return [self._step(stores[-1:], entry, f"{words} saved at {area.start:#x}, the last")]

    def _writer(self, finding: Finding, entry: Batch) -> list[Step]:
        """The last store into the slot of the first field that came back wrong."""
        write = self._write(finding, entry)
        if write is None:
            return []
        seen = self._history.before(write.event + 1)[-1:]
        known = len(seen) and int(seen["seq"][0]) == write.event
        time = int(seen["time"][0]) - int(entry["time"][0]) if known else None
        stale = " (not on this save)" if write.event < int(entry["seq"][0]) else ""
        what = f"last write of {finding.slot or 'the slot'}{stale}"
        return [Step(write.event, time, what, write.pc, self._guest.symbol(write.pc))]

    def _write(self, finding: Finding, entry: Batch) -> Write | None:
        if finding.writer is None or not finding.differences or not self._areas.known(finding.event):
            return None
        area = self._areas.area_of(entry, finding.event)
        return self._areas.last_write(area, finding.differences[0].field, finding.event) if area is not None else None

    def _step(self, row: Batch, entry: Batch, what: str) -> Step:
        pc = int(row["pc"][0])
        time = int(row["time"][0]) - int(entry["time"][0])
        return Step(int(row["seq"][0]), time, what, pc, self._guest.symbol(pc))

    # Code

    def _readable(self, finding: Finding, row: Batch) -> bool:
        """Kernel code is mapped everywhere. Of user code we have the right bytes only while its vCPU stands: a guest
        that runs on may have another program at the same address."""
        return finding.interrupted.cpl != 3 or (bool(row["flags"][0] & Flag.WAITING) and not row["cpu"][0])

    def _base(self, entry: Batch) -> int | None:
        """Where the segment of the interrupted 32-bit code begins, None if that is not known. An ENTRY row's pc is
        linear, the offset in the handler's gate is not (Intel SDM vol. 3A, 6.12.1)."""
        table, vector = self._tables.get(int(entry["cpu"][0])), int(entry["vector"][0])
        if entry["kind"][0] != Kind.ENTRY or entry["mode"][0] != 32 or vector >= vectors.SYSCALL or table is None:
            return 0
        try:
            gates = decode_idt(bytes(8 * vector) + self._guest.read(table + 8 * vector, 8), 32)
        except OSError:
            return 0
        base = (int(entry["pc"][0]) - gates[0].offset) & MASK32 if gates else 0
        return base if not base or entry["cs"][0] == gates[0].selector else None

    def _code(self, address: int, symbol: str | None, bits: int, base: int = 0) -> tuple[CodeLine, ...]:
        """The instructions around `address` in a segment that begins at `base`."""
        if not address:
            return ()
        code = self._codes.setdefault((bits, base), Code(lambda at, length: self._guest.read(at + base, length), bits))
        lines = listing(code, address, BEFORE, AFTER, _start(address, symbol))
        return tuple(CodeLine(insn.address, text(insn)) for insn in lines)


def _mode(row: Batch) -> int:
    return int(row["mode"][0]) if row["mode"][0] in (16, 32, 64) else 64


def _start(address: int, symbol: str | None) -> int | None:
    """The function's first instruction, from a name like ``function+0x12``."""
    if symbol is None:
        return None
    _, plus, offset = symbol.rpartition("+0x")
    try:
        return address - int(offset, 16) if plus else address
    except ValueError:
        return None


def _left(rows: Batch) -> Batch | None:
    """The first exit among `rows` (of one CPU, after an entry) that resumes something not interrupted among them."""
    inside: list[tuple[int, int]] = []
    chosen = ((rows["kind"] == Kind.ENTRY) | (rows["kind"] == Kind.EXIT)) & ((rows["flags"] & Flag.SELF) == 0)
    for at in np.flatnonzero(chosen).tolist():
        row = rows[at : at + 1]
        place = int(row["rip"][0]), int(row["rsp"][0])
        if row["kind"][0] == Kind.ENTRY:
            if bool(is_user(row)[0]):
                return None
            inside.append(place)
        elif place in inside:
            del inside[inside.index(place) :]
        else:
            return row
    return None
