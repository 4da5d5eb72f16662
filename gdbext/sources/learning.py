"""Learn a running guest's save areas from the code behind its interrupt table and its first entries.

The table is read when the first entry is seen: then it is complete enough to run on, and nothing has gone wrong yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.descriptors import Gate, decode_idt
from gdbext.arch.registers import MSR_LSTAR, MSR_SYSENTER_EIP
from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway, Limits
from gdbext.events.row import Batch, Flag, Kind
from gdbext.profiles.learn import Learnt, learn_layout
from gdbext.rules.pathfacts import entry_of

Read = Callable[[int, int], bytes]

LIMITS: Final = Limits(instructions=8_000, calls=4)
"""For an exploration that the guest waits for."""
AGAIN: Final = (1, 500, 20_000)
"""Entries after which it is tried; again after the later ones, if new handlers were seen since."""
_MAX_TABLE: Final = 256 * 16
_SAMPLE: Final = (vectors.PF, vectors.DE)
"""Exceptions worth a look: one with and one without an error code."""
_INTERRUPTS: Final = 1
"""Interrupts worth a look."""


class Handlers:
    """The entry points of a guest: seen at work, named by its interrupt table and its system-call MSRs."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, Gateway], Entry] = {}
        self.bits = 0
        self.entries = 0
        self.table: tuple[int, int] | None = None
        """Base and limit of the interrupt table loaded last."""

    def note(self, batch: Batch) -> None:
        """Take what `batch` shows."""
        kind = batch["kind"]
        for index in np.flatnonzero(kind == Kind.IDT):
            self.table = int(batch["addr"][index]), int(batch["value"][index])
        for index in np.flatnonzero(kind == Kind.BASE):
            gateway = {MSR_LSTAR: Gateway.SYSCALL, MSR_SYSENTER_EIP: Gateway.SYSENTER}.get(int(batch["addr"][index]))
            if gateway is not None and batch["value"][index]:
                self._add(Entry(int(batch["value"][index]), gateway))
        rows = batch[(kind == Kind.ENTRY) & ((batch["flags"] & Flag.UNREADABLE) == 0) & (batch["mode"] != 16)]
        self.entries += len(rows)
        for index in np.unique(rows["pc"], return_index=True)[1]:
            self._add(entry_of(rows[index : index + 1]))
            self.bits = 64 if rows["mode"][index] == 64 else 32

    def read_table(self, read: Read) -> None:
        """Add a sample of what the gates of the interrupt table name; nothing where it cannot be read."""
        if self.table is None or not self.bits:
            return
        base, limit = self.table
        try:
            gates = decode_idt(read(base, min(limit + 1, _MAX_TABLE)), self.bits)
        except OSError:
            return
        for gate in sample(gates):
            self._add(Entry(gate.offset, vector=gate.vector, ist=gate.ist, soft=_called(gate)))

    def _add(self, entry: Entry) -> None:
        if entry.address:
            self._seen.setdefault((entry.address, entry.gateway), entry)

    @property
    def all(self) -> list[Entry]:
        """One for each handler, in the order in which they were first seen."""
        return list(self._seen.values())


def sample(gates: Iterable[Gate]) -> list[Gate]:
    """Gates that show how a kernel saves contexts: some exceptions, some interrupts, those that user code may call.

    Handlers with a stack of their own (IST) are left out: they save in a way of their own.
    """
    plain = [gate for gate in gates if not gate.ist]
    interrupts = [gate for gate in plain if not vectors.is_exception(gate.vector)]
    chosen = [gate for gate in plain if gate.vector in _SAMPLE]
    chosen += [gate for gate in interrupts if not _called(gate)][:_INTERRUPTS]
    return chosen + [gate for gate in interrupts if _called(gate)]


def _called(gate: Gate) -> bool:
    """True for a gate that user code may call: a system call's."""
    return gate.dpl == 3 and not vectors.is_exception(gate.vector)


class Learner:
    """Learns once, as early as it can; :attr:`learnt` is None until then.

    seen: what was learnt last, also of areas that cannot be watched: those on the handler's stack.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._handlers = Handlers()
        self._stages = list(AGAIN)
        self._known = 0
        self.learnt: Learnt | None = None
        self.seen: Learnt | None = None

    def ready(self, batch: Batch) -> bool:
        """Take what `batch` shows; True if it is time for :meth:`learn`."""
        if self.learnt is not None or not self._stages:
            return False
        self._handlers.note(batch)
        return self._handlers.entries >= self._stages[0]

    @property
    def tried(self) -> bool:
        """True once :meth:`learn` was called."""
        return len(self._stages) < len(AGAIN)

    def learn(self) -> Learnt | None:
        """Learn from what was seen so far; None unless it shows a save area that can be found."""
        self._stages.pop(0)
        self._handlers.read_table(self._read)
        entries = self._handlers.all
        if len(entries) == self._known:
            return None
        self._known = len(entries)
        self.seen = learnt = learn_layout(Code(self._read, self._handlers.bits), entries, LIMITS)
        if learnt.current and not learnt.on_stack:
            self.learnt = learnt
        return self.learnt
