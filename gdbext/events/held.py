"""Which registers an event's row holds: what a source did not read is 0 in its column, and no value of the guest's.

Entries and exits carry the whole context. The smaller events of the probe carry what the rules need of them; those made
through GDB's breakpoints carry every live register, which shows in RFLAGS: bit 1 of it is always set (Intel SDM vol. 1,
3.4.3), so that a column of 0 was not read.
"""

from __future__ import annotations

from typing import Final

from gdbext.arch.flags import ALWAYS_ONE
from gdbext.arch.frames import FRAME_FIELDS
from gdbext.arch.registers import GPR64, SEGMENTS
from gdbext.events.row import Batch, Flag, Kind

BASES: Final = ("fs_base", "gs_base", "kernel_gs_base")
REGISTERS: Final = (*GPR64, "rip", "rflags", *SEGMENTS, *BASES, "cr2", "cr3")
"""The columns of a row that are registers."""

_WHERE: Final = frozenset({"rip", "rsp", "cs"})
_SMALL: Final = _WHERE | {"ss", *BASES}
_HELD: Final = {
    Kind.SWAPGS: _SMALL,
    Kind.BASE: _SMALL,
    Kind.IDT: _SMALL,
    Kind.RESTORED: _SMALL,
    Kind.GS_ACCESS: _SMALL | {*GPR64, "cr3"},
    Kind.CR3: _WHERE | {"cr3"},
    Kind.STORE: _WHERE | {"cr3"},
    Kind.TRACKED: _WHERE | {"cr3"},
    Kind.SWITCH_OUT: _WHERE | {*GPR64, "cr3"},
    Kind.SWITCH_IN: _WHERE | {*GPR64, "cr3"},
}
"""What the probe reads at an event of this kind; nothing at the others."""

NOT_CAPTURED: Final = "not captured"


def lacking(row: Batch) -> dict[str, str]:
    """The registers that `row`, a batch of one, does not hold, with the reason."""
    kind, flags = int(row["kind"][0]), int(row["flags"][0])
    whole = kind in (Kind.ENTRY, Kind.EXIT)
    missing: dict[str, str] = {}
    if not whole and not int(row["rflags"][0]) & ALWAYS_ONE:
        late = kind == Kind.STORE and bool(row["match"][0])
        held = _HELD.get(kind, frozenset()) if not late else frozenset({"rip"})
        missing |= {name: NOT_CAPTURED for name in REGISTERS if name not in held}
    if whole and flags & Flag.UNREADABLE:
        missing |= dict.fromkeys(FRAME_FIELDS, "the frame could not be read")
    if flags & Flag.NO_KERNEL_GS:
        missing["kernel_gs_base"] = NOT_CAPTURED
    if flags & Flag.NO_BASES:
        missing |= {"fs_base": NOT_CAPTURED, "gs_base": NOT_CAPTURED}
    return missing
