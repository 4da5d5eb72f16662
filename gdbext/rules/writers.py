"""Who made a store: the instruction with its name, and where known the event, the CPU and the thread."""

from __future__ import annotations

import numpy as np

from gdbext.events.row import Batch, Kind
from gdbext.ledger.compare import is_user, space
from gdbext.rules.finding import Writer
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History
from gdbext.rules.laststores import Write


class Writers:
    """Names those who made the stores of one run."""

    def __init__(self, guest: GuestView, history: History) -> None:
        self._guest = guest
        self._history = history

    def by_code(self, pc: int) -> Writer:
        """Who stores where only the code shows it: the instruction at `pc`, some time."""
        return Writer(pc, self._guest.symbol(pc))

    def of(self, store: Write) -> Writer:
        """Who made `store`."""
        turn = self.turn(store)
        thread = thread_of(turn, bool(is_user(turn)[0])) if turn is not None else None
        return Writer(store.pc, self._guest.symbol(store.pc), store.event, store.cpu, thread)

    def turn(self, store: Write, *kinds: int) -> Batch | None:
        """The last entry or exit (or row of one of `kinds`) on that CPU before `store`, as a batch of one."""
        past = self._history.before(store.event + 1)
        wanted = np.isin(past["kind"], np.array(kinds or (Kind.ENTRY, Kind.EXIT))) & (past["cpu"] == store.cpu)
        found = np.flatnonzero(wanted)[-1:]
        return past[found] if len(found) else None


def thread_of(row: Batch, user: bool) -> str | None:
    """A key for the thread of the context in `row` (a batch of one), as far as registers tell: address space and FS
    base of user code, stack of kernel code."""
    if user:
        return f"cr3 {int(space(row)[0]):#x} fs {int(row['fs_base'][0]):#x}"
    return f"kernel stack {int(row['rsp'][0]) & ~0xFFF:#x}" if row["rsp"][0] else None
