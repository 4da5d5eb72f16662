"""The one law on columns: which fields of a resumed context differ from the interrupted one, and which must not.

A difference is one bit of a mask; :data:`FIELD_BITS` names the bits. All functions take two batches of equal length
(interrupted contexts and the exits that resume them) and return one mask per pair, so that a batch of a million and
a batch of one run the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gdbext.arch import flags as rf
from gdbext.arch.addresses import CR3_TABLE_32, CR3_TABLES
from gdbext.arch.registers import GPR64
from gdbext.events.columns import SPREAD, Columns, Rows, any_of
from gdbext.events.row import NOT_READ, Flag, How, Kind

U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.uint32]
Bools = npt.NDArray[np.bool_]

FIELD_BITS: Final[tuple[str, ...]] = (
    *GPR64,
    "rip", "rflags", "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "simd",
    "tracked0", "tracked1", "tracked2", "tracked3",
)  # fmt: skip
"""Bit n of a difference mask is this field."""

BIT: Final = {name: np.uint32(1 << index) for index, name in enumerate(FIELD_BITS)}
SELECTORS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
GPR_BITS: Final = 0xFFFF
FEW_BYTES: Final = 64
"""No two stacks lie as close: an RSP off by no more is the same stack's, wrong by a few words."""
LOW_BITS: Final = 0xFF
"""The general registers that 32-bit code has: RAX to RDI."""


def contexts(batch: Columns) -> Columns:
    """The entries and exits of a batch: its events that interrupt a context or resume one. Most rules ask for them."""
    return batch.shared("contexts", _are_contexts)


def _are_contexts(batch: Rows) -> Bools:
    kind = batch["kind"]
    found: Bools = (kind == Kind.ENTRY) | (kind == Kind.EXIT)
    return found


def resuming(rows: Columns) -> Columns:
    """Of the contexts `rows` those whose frame could be read, and that are not resumed behind a serialising iret."""
    return rows.shared("resuming", lambda rows: (rows["flags"] & (Flag.UNREADABLE | Flag.SELF)) == 0)


def turns(batch: Columns) -> Columns:
    """The events at which a CPU turns to another stack, but by the hardware's task switches."""
    return batch.shared("turns", _are_turns)


def _are_turns(batch: Columns) -> Bools:
    kind = batch["kind"]
    found: Bools = (kind == Kind.SWITCH_OUT) | (kind == Kind.SWITCH_IN)
    switches = np.flatnonzero(found)
    found[switches] = batch.at("how", switches) != How.TASK
    return found


def crosses(batch: Columns) -> Bools:
    """True for entries from user code, and exits to it."""
    return batch.derived("crosses", _crosses)


def _crosses(batch: Columns) -> Bools:
    return of_contexts(batch, is_user(contexts(batch)))


def of_contexts(batch: Columns, chosen: Bools) -> Bools:
    """True in `batch` for those of its contexts that are `chosen`."""
    found = _are_contexts(batch)
    found[np.flatnonzero(found)] = chosen
    return found


def writes(batch: Columns, *registers: int) -> Columns:
    """The events in which one of these MSRs, or base registers, is written."""
    rows = batch.shared("writes", lambda rows: rows["kind"] == Kind.BASE)
    return rows.take(np.flatnonzero(any_of(rows["addr"], registers)))


def gprs(batch: Rows) -> U64:
    """The sixteen general registers as an (n, 16) array."""
    return _columns(batch).gprs()


def is_user(batch: Rows) -> Bools:
    """True where the row's context runs at CPL 3: by CS, in virtual-8086 mode, or behind a sysret or sysexit."""
    return batch.derived("is user", _is_user) if isinstance(batch, Columns) else _is_user(batch)


def _is_user(batch: Rows) -> Bools:
    how = batch["how"]
    by_call = (how == How.SYSRET) | (how == How.SYSEXIT) | (how == How.SYSCALL) | (how == How.SYSENTER)
    user: Bools = by_call | ((batch["cs"] & 3) == 3) | ((batch["rflags"] & np.uint64(rf.VM)) != 0)
    return user


def is_call(entries: Rows) -> Bools:
    """True where the entry is a system call: syscall, sysenter or int n."""
    how = entries["how"]
    call: Bools = (how == How.SYSCALL) | (how == How.SYSENTER) | (how == How.SOFT)
    return call


def space(batch: Rows) -> U64:
    """The address space of each row's context: CR3 without PCID; 0 for kernel contexts.

    A kernel context may be resumed under another CR3 (lazy TLB); user contexts may not.
    """
    return batch.derived("space", _space) if isinstance(batch, Columns) else _space(batch)


def _space(batch: Rows) -> U64:
    value: U64 = np.where(is_user(batch), page_tables(batch), np.uint64(0))
    return value


def page_tables(batch: Rows) -> U64:
    """CR3 of each row without PCID."""
    bits = np.where(batch["mode"] == 64, np.uint64(CR3_TABLES), np.uint64(CR3_TABLE_32))
    tables: U64 = batch["cr3"]
    return tables & bits


def keys(batch: Rows) -> U64:
    """One hash per context of (RIP, RSP, address space): equal contexts have equal keys."""
    return batch.derived("keys", _keys) if isinstance(batch, Columns) else _keys(batch)


def _keys(batch: Rows) -> U64:
    return mixed(batch["rip"], batch["rsp"], space(batch))


def mixed(first: U64, second: U64, third: U64 | np.uint64) -> U64:
    """One hash per line of three columns."""
    key: U64 = first * np.uint64(SPREAD)
    key ^= (second + np.uint64(0x7F4A7C15)) * np.uint64(0xC2B2AE3D27D4EB4F)
    key ^= third * np.uint64(0x165667B19E3779F9)
    key ^= key >> np.uint64(29)
    return key


@dataclass(frozen=True, slots=True)
class Law:
    """What may change.

    call_returns: mask of the general registers that a system call may change.  preserved: (slot, mask) of the tracked
    variables that must come back as they were.
    """

    call_returns: int
    preserved: tuple[tuple[int, int], ...] = ()


def mask_of(names: Iterable[str]) -> int:
    """The mask of the general registers `names`."""
    return sum(1 << GPR64.index(name) for name in names)


TAKEN_BY_CALL: Final = ("rcx", "r11")
"""What ``syscall`` destroys, and ``sysenter`` or its way back may (Intel SDM vol. 2, SYSCALL, SYSEXIT)."""
_TAKEN_BY_CALL: Final = mask_of(TAKEN_BY_CALL)


def differences(entries: Rows, exits: Rows, law: Law) -> Mask:
    """Return, per pair, the mask of fields that had to come back and did not.

    What is left out, and why:
    RF is set by faults, and no iret loads the upper half of RFLAGS; CF is many ABIs' error flag of a system call; of
    flags that were read live the arithmetic ones and DF are not known; CS and SS of ``syscall`` and ``sysret`` come
    from STAR and are judged as such; 32-bit code has no R8 to R15; DS and ES mean nothing to 64-bit code; while kernel
    code runs, FS base, inactive GS base and user TLS selectors belong to the user context and are judged at its next
    resume; a system call may set a base or a selector to one of its arguments; FPU registers are the context's only at
    a resume of user code with CR0.TS clear.
    """
    entries, exits = _columns(entries), _columns(exits)
    mask = changed_registers(entries, exits)
    mask[is_call(entries)] &= np.uint32(~law.call_returns & 0xFFFF_FFFF)
    mask[by_call(entries)] &= np.uint32(~_TAKEN_BY_CALL & 0xFFFF_FFFF)
    small = _small(exits)
    mask[small] &= np.uint32(LOW_BITS)
    for name, had_to in _HAD_TO_COME_BACK.items():
        if had_to is _lost_small_selector and not small.any():
            continue
        at = np.flatnonzero(entries[name] != exits[name])
        if len(at):
            mask[at[had_to(name, entries.take(at), exits.take(at))]] |= BIT[name]
    for slot, bits in law.preserved:
        before, after = entries["tracked"][:, slot], exits["tracked"][:, slot]
        read = (before != np.uint64(NOT_READ)) & (after != np.uint64(NOT_READ))
        mask[read & (((before ^ after) & np.uint64(bits)) != 0)] |= BIT[f"tracked{slot}"]
    _mark_simd(entries, exits, mask)
    return mask


def _columns(batch: Rows) -> Columns:
    return batch if isinstance(batch, Columns) else Columns(batch)


def changed_registers(entries: Columns, exits: Columns) -> Mask:
    """Per pair, one bit for each of the sixteen general registers that differs."""
    if entries.apart and exits.apart:
        found = np.zeros(len(exits), np.uint16)
        for number, name in enumerate(GPR64):
            found |= (entries[name] != exits[name]).astype(np.uint16) << np.uint16(number)
        return found.astype(np.uint32)
    changed = gprs(entries) != gprs(exits)
    bits: Mask = np.packbits(changed.reshape(-1), bitorder="little").view("<u2").astype(np.uint32)
    return bits


def _small(exits: Columns) -> Bools:
    """True where the context is 32-bit code's."""
    small: Bools = (exits["flags"] & Flag.LINEAR32) != 0
    return small


def _lost_rip(name: str, entries: Columns, exits: Columns) -> Bools:
    return np.ones(len(exits), bool)


def _lost_flags(name: str, entries: Columns, exits: Columns) -> Bools:
    always = rf.RF | rf.UPPER
    ignored = np.where(is_call(entries), np.uint64(always | rf.CF), np.uint64(always))
    partial = ((entries["flags"] | exits["flags"]) & Flag.FLAGS_PARTIAL) != 0
    ignored[partial] |= np.uint64(rf.STATUS | rf.DF)
    lost: Bools = ((entries[name] ^ exits[name]) & ~ignored) != 0
    return lost


def _lost_code_selector(name: str, entries: Columns, exits: Columns) -> Bools:
    framed: Bools = ~by_call(entries) & ((exits["how"] == How.IRET) | (exits["how"] == How.TASK))
    return framed & _lost_selector(name, entries, exits)


def _lost_small_selector(name: str, entries: Columns, exits: Columns) -> Bools:
    return _small(exits) & _lost_selector(name, entries, exits)


def _lost_thread_selector(name: str, entries: Columns, exits: Columns) -> Bools:
    own: Bools = is_user(exits) | (_small(exits) & ((entries[name] & 3) == 0))
    return own & _lost_selector(name, entries, exits)


def _lost_selector(name: str, entries: Columns, exits: Columns) -> Bools:
    """0 to 3 all are the null selector (Intel SDM vol. 3A, 3.4.2)."""
    null: Bools = (entries[name] < 4) & (exits[name] < 4)
    return ~null & ~_asked(name, entries, exits)


def _lost_base(name: str, entries: Columns, exits: Columns) -> Bools:
    have_bases = ((entries["flags"] | exits["flags"]) & Flag.NO_BASES) == 0
    lost: Bools = have_bases & is_user(exits) & ~(is_call(entries) & _small(exits))
    return lost & ~_asked(name, entries, exits)


def _asked(name: str, entries: Columns, exits: Columns) -> Bools:
    """True for system calls whose caller passed the new value in a register.

    Zero is in one of them as a rule and tells nothing; but the kernel clears a selector of 64-bit code where its base
    was asked for (Linux, arch_prctl).
    """
    asked: Bools = is_call(entries) & (gprs(entries) == exits[name].astype(np.uint64)[:, None]).any(axis=1)
    told: Bools = exits[name] != 0
    if name in SELECTORS:
        told |= ~_small(exits)
    return asked & told


_HAD_TO_COME_BACK: Final = {
    "rip": _lost_rip,
    "rflags": _lost_flags,
    "cs": _lost_code_selector,
    "ss": _lost_code_selector,
    "ds": _lost_small_selector,
    "es": _lost_small_selector,
    "fs": _lost_thread_selector,
    "gs": _lost_thread_selector,
    "fs_base": _lost_base,
    "gs_base": _lost_base,
}
"""For each field, where a value that differs is one that was lost."""


def by_call(entries: Rows) -> Bools:
    """True where the entry is by an instruction that pushes no frame: syscall or sysenter."""
    how = entries["how"]
    calls: Bools = (how == How.SYSCALL) | (how == How.SYSENTER)
    return calls


def _mark_simd(entries: Columns, exits: Columns, mask: Mask) -> None:
    """Compare XMM, MXCSR and the x87 registers where both rows hold them."""
    if "simd" not in entries.names or "simd" not in exits.names:
        return
    valid = is_user(exits) & (entries["flags"] & exits["flags"] & Flag.SIMD != 0)
    valid &= (entries["flags"] | exits["flags"]) & Flag.FPU_OFF == 0
    if valid.any():
        before, after = entries["simd"], exits["simd"]
        lost = (before["xmm"] != after["xmm"]).any(axis=(1, 2)) | (before["x87"] != after["x87"]).any(axis=(1, 2))
        lost |= entries["mxcsr"] != exits["mxcsr"]
        mask[valid & lost] |= BIT["simd"]


def names(mask: int) -> list[str]:
    """The fields of one difference mask, in the order of FIELD_BITS."""
    return [name for index, name in enumerate(FIELD_BITS) if mask >> index & 1]


def few_words_apart(one: U64, other: U64) -> Bools:
    """True where two stack pointers are on one stack, FEW_BYTES apart at most."""
    near: Bools = one - other + np.uint64(FEW_BYTES) <= np.uint64(2 * FEW_BYTES)
    return near


def agreement(entries: Rows, exits: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per pair: how many of the 15 general registers other than RSP are equal, and how many of those are not zero."""
    same = gprs(entries) == gprs(exits)
    same[:, 4] = False
    telling = same & (gprs(entries) != 0)
    return same.sum(axis=1), telling.sum(axis=1)
