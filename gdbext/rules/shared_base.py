"""Two CPUs with one kernel GS base at the same time: CW205, blamed on the write that brought it to the second.

A kernel whose GS base belongs to a thread takes it along from CPU to CPU, but no two have it at once, save for the
moments between letting a thread go and loading the next one's base. So a CPU that has the base of another is told only
once the other one, too, is seen to go on with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gdbext.events.row import Batch


@dataclass(slots=True)
class _Cpu:
    """base: the kernel's GS base that the CPU is known to have, None between a write and the next sight of it.
    writes: the last write of each of the two GS bases.  guest: the first CPU seen with this base meanwhile, and
    the write that brought it there."""

    base: int | None = None
    writes: dict[int, Batch] = field(default_factory=dict)
    guest: tuple[int, Batch | None] | None = None


class SharedBases:
    """What is known of every CPU's kernel base from the writes of GS bases and the crossings that show it."""

    def __init__(self) -> None:
        self._cpus: dict[int, _Cpu] = {}

    def wrote(self, row: Batch) -> None:
        """The CPU of `row` (a batch of one) is about to write one of its two GS bases."""
        cpu = self._cpus.setdefault(int(row["cpu"][0]), _Cpu())
        cpu.base, cpu.guest = None, None
        cpu.writes[int(row["addr"][0])] = row.copy()

    def sighted(self, number: int, base: int) -> tuple[int, int, Batch] | None:
        """CPU `number` has this base.

        If it shares it with another: the CPU that must not have it, the one it belongs to, and the write that brought
        it (a batch of one); else None.
        """
        cpu = self._cpus.setdefault(number, _Cpu())
        guest = cpu.guest if cpu.base == base else None
        cpu.base, cpu.guest = base, None
        if not base:
            return None  # a base that nobody has loaded
        for owner, known in self._cpus.items():
            if owner != number and known.base == base and known.guest is None:
                known.guest = number, self.brought(number, base)
        if guest is None:
            return None
        other, theirs = guest
        writes = (other, number, theirs), (number, other, self.brought(number, base))
        shown = [(cpu, owner, write) for cpu, owner, write in writes if write is not None]
        return max(shown, key=lambda item: int(item[2]["seq"][0]), default=None)

    def brought(self, number: int, base: int) -> Batch | None:
        """The write that gave CPU `number` this base, None if it was not seen."""
        cpu = self._cpus.get(number, _Cpu())
        writes = [write for write in cpu.writes.values() if int(write["value"][0]) == base]
        return max(writes, key=lambda write: int(write["seq"][0]), default=None)
