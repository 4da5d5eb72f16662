"""What the differences between an interrupted and a resumed context mean: one draft per code."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Flag, How, concat
from gdbext.ledger import compare
from gdbext.ledger.compare import agreement, few_words_apart, is_call, is_user, space
from gdbext.ledger.live import Live
from gdbext.rules.codes import ERROR, WARNING
from gdbext.rules.draft import Draft
from gdbext.rules.finding import Difference
from gdbext.rules.policy import Policy, Tracked

STRONG_TELLING: Final = 4
"""Registers besides RSP that must agree and hold something other than zero before two contexts are called alike."""
_FEW: Final = 2
"""Registers that may differ without their being moved together."""
_MANY: Final = 4
"""Registers that must differ before another context is looked for that has all of them."""


def drafts(
    policy: Policy, entry: Batch, row: Batch, mask: int, match: str, live: Live, past: Batch | None = None
) -> list[Draft]:
    """What the mask of differences means, one draft per code.

    live: the contexts that wait when the exit `row` comes.  past: one more that may be the owner of what it loads.
    """
    fields = compare.names(mask)
    call = bool(is_call(entry)[0])
    vector = int(entry["vector"][0])
    severity = WARNING if vector in vectors.TRACER_MAY_EDIT else ERROR
    if match != "exact" and bool((space(entry) != space(row))[0]):
        return [_wrong_space(entry, row, match)]
    general = [name for name in fields if name in GPR64 or name == "rip"]
    owner = None
    if len(general) >= _MANY or (general == ["rsp"] and (call or _far(entry, row))):
        owner = _owner_of(row, _others(entry, live.owners, past), general)
    if owner is not None:
        return [_wrong_context(entry, row, general, owner, match)]
    found = []
    if general:
        found.append(_registers(entry, row, general, call, match, severity))
    if "rflags" in fields and not _says_it_better(entry, row):
        stepped = not policy.edits_others and _may_be_stepped(entry, row)
        found.append(_flags(entry, row, match, WARNING if stepped else severity))
    selectors = [name for name in fields if name in ("cs", "ss", "ds", "es", "fs", "gs")]
    if selectors:
        found.append(_selectors(entry, row, selectors, match))
    if "fs_base" in fields:
        found.append(fs_base(entry, row, _others(entry, live.all, past), match))
    if "gs_base" in fields and not _exchanged(entry, row):
        found.append(_user_gs(entry, row, match))
    if "simd" in fields:
        found.append(_simd(entry, row, match))
    for slot, variable in enumerate(policy.tracked):
        if f"tracked{slot}" in fields:
            found.append(_tracked(variable, slot, entry, row, match))
    return [_perhaps_traced(draft) if draft.severity == WARNING else draft for draft in found]


def _perhaps_traced(draft: Draft) -> Draft:
    return replace(draft, cause=f"{draft.cause}; a debugger of the guest's own may have done it, hence a warning")


def _far(entry: Batch, row: Batch) -> bool:
    """True unless RSP is off by a few words only: another context has that by chance, where programs are alike."""
    return not few_words_apart(entry["rsp"], row["rsp"])[0]


def _owner_of(row: Batch, others: Batch, fields: list[str]) -> Batch | None:
    """The other suspended context whose registers were resumed instead, or None.

    Four or more registers that all are another context's, or an RSP that is another's.
    """
    if not len(others):
        return None
    equal, telling = agreement(others, np.repeat(row, len(others)))
    swapped = (equal == 15) & (telling >= STRONG_TELLING) & (len(fields) >= _MANY)
    if fields == ["rsp"]:
        swapped |= (others["rsp"] == row["rsp"]) & (is_user(others) == is_user(row))
    hits = np.flatnonzero(swapped)
    return others[hits[-1:]] if len(hits) else None


def _others(entry: Batch, live: Batch, past: Batch | None) -> Batch:
    rows = concat((live, past)) if past is not None else live
    others: Batch = rows[rows["seq"] != entry["seq"]]
    return others


def _exchanged(entry: Batch, row: Batch) -> bool:
    """True if the active base at exit is the kernel's: the wrong parity, which the GS rules judge. (0 is nobody's.)"""
    kernels = entry["kernel_gs_base"][0]
    return bool(kernels and row["gs_base"][0] == kernels and entry["gs_base"][0] != kernels)


def _diffs(entry: Batch, row: Batch, fields: list[str]) -> tuple[Difference, ...]:
    return tuple(Difference(name, int(entry[name][0]), int(row[name][0])) for name in fields)


def _registers(entry: Batch, row: Batch, fields: list[str], call: bool, match: str, severity: str) -> Draft:
    code = "CW106" if call else "CW101"
    found = _diffs(entry, row, fields)
    values = {d.field: d for d in found}
    exchanged = [
        (a.field, b.field)
        for i, a in enumerate(found)
        for b in found[i + 1 :]
        if a.expected == b.actual and b.expected == a.actual
    ]
    listed = " and ".join(fields) if len(fields) < 3 else ", ".join(fields)
    vector = int(entry["vector"][0])
    numbered = next((d.field for d in found if d.actual == vector and len(found) > _FEW and not call), "")
    if row["how"][0] == How.SYSRET and not call and {"rcx", "r11"} >= set(fields):
        cause = (
            f"sysret resumes what {vectors.name(vector)} interrupted: it takes RIP from RCX and RFLAGS from R11, so "
            "that neither keeps its own value"
        )
        look = "how this exit path chooses between sysret and iret: only a system call may leave by sysret"
    elif numbered:
        cause = (
            f"{listed} did not survive the handler, and {numbered} came back with {vector:#x}, the number of the "
            "vector: what the stub pushed lies where a register is looked for"
        )
        look = (
            f"what the stub of {vectors.name(vector)} pushes: an error code where the CPU pushes one, or none elsewhere"
        )
    elif exchanged:
        pairs = "; ".join(f"{a} came back with the value of {b} and {b} with that of {a}" for a, b in exchanged)
        cause = f"{pairs}: two slots are exchanged between save and restore"
        look = "the order of the slots (or of push and pop) on the save path beside that of the restore path"
    elif call:
        what = vectors.name(vector)
        cause = f"{what} returned with {listed} changed; a system call may change only its results and clobbers"
        look = "where the system call path saves and restores it, or loads it after the restore"
    elif fields == ["rip"]:
        cause = "the context is whole but for RIP, and nothing that may redirect it was seen"
        look = "who writes the saved RIP"
    else:
        was, it, slot = ("it was", "it", "slot") if len(fields) == 1 else ("they were", "them", "slots")
        cause = f"{listed} did not survive the handler: {was} not saved, not restored, or overwritten in between"
        look = f"whether the entry path stores {it} and the exit path loads {it} from the same {slot}"
    if len(values) == 1 and not exchanged:
        source = [n for n in GPR64 if n not in values and entry[n][0] == row[fields[0]][0] != 0]
        if len(source) == 1:
            cause += f"; the value that came back is {source[0]}'s"
    return Draft(code, cause, look, found, severity, match)


def _flags(entry: Batch, row: Batch, match: str, severity: str) -> Draft:
    expected, actual = int(entry["rflags"][0]), int(row["rflags"][0])
    cause = (
        f"the RFLAGS that come back ({rf.describe(actual)}) are not those of the interrupted code "
        f"({rf.describe(expected)}): {rf.difference(expected, actual)}"
    )
    look = "whether the entry path stores the RFLAGS of the hardware frame, and where the exit path takes them from"
    return Draft("CW102", cause, look, (Difference("rflags", expected, actual),), severity, match)


def _says_it_better(entry: Batch, row: Batch) -> bool:
    """True if all that differs is what CW602 and CW603 judge: IF cleared, or privileged bits set, for user code."""
    changed = int(entry["rflags"][0]) ^ int(row["rflags"][0])
    return bool(is_user(row)[0]) and changed & ~(rf.IF | rf.IOPL | rf.NT | rf.VM | rf.RF) == 0


def _may_be_stepped(entry: Batch, row: Batch) -> bool:
    """True if all that differs is TF of user code, of what is known: a debugger steps it, or has stopped to."""
    unknown = rf.RF
    if (entry["flags"][0] | row["flags"][0]) & Flag.FLAGS_PARTIAL:
        unknown |= rf.STATUS | rf.DF
    return bool(is_user(row)[0]) and (int(entry["rflags"][0]) ^ int(row["rflags"][0])) & ~unknown == rf.TF


def _tracked(variable: Tracked, slot: int, entry: Batch, row: Batch, match: str) -> Draft:
    before, after = (int(r["tracked"][0][slot]) & variable.mask for r in (entry, row))
    what = vectors.name(int(entry["vector"][0]))
    cause = (
        f"{variable.name} was {before:#x} when {what} came and is {after:#x} at its return: the handler left it changed"
    )
    look = f"the paths that set {variable.name} in this handler: one of them is not undone"
    return Draft("CW701", cause, look, (Difference(variable.name, before, after),), ERROR, match)


def _selectors(entry: Batch, row: Batch, fields: list[str], match: str) -> Draft:
    found = _diffs(entry, row, fields)
    for d in found:
        if d.field == "cs" and (was := int(entry["cs"][0])) & 3 > d.actual & 3:
            cause = f"user code (CS {was:#x}) is resumed with CS {d.actual:#x}, privilege level {d.actual & 3}"
            return Draft("CW603", cause, "who writes the saved CS", (d,), ERROR, match)
    listed = ", ".join(d.field.upper() for d in found)
    cause = f"{listed} came back as {', '.join(f'{d.actual:#x}' for d in found)}"
    return Draft(
        "CW103", cause, "whether the entry path saves the selectors and the exit reloads them", found, ERROR, match
    )


def fs_base(entry: Batch, row: Batch, others: Batch, match: str) -> Draft:
    """CW104: the context `entry` is resumed by the exit `row` with another FS base; `others` wait at that time."""
    found = _diffs(entry, row, ["fs_base"])
    value = row["fs_base"][0]
    cause = f"the thread's FS base (its thread-local storage) came back as {int(value):#x}"
    owners = others[(is_user(others) == is_user(row)) & (others["fs_base"] == value)] if len(others) else others
    if value == 0:
        cause += ": it was cleared"
    elif len(owners):
        cause += f": that of the thread suspended at event {int(owners['seq'][-1])} (CR3 {int(owners['cr3'][-1]):#x})"
    look = "whether the switch writes FS base (wrmsr C0000100h, wrfsbase) for every thread, and saves it before"
    return Draft("CW104", cause, _descriptor("FS", row) or look, found, ERROR, match)


def _user_gs(entry: Batch, row: Batch, match: str) -> Draft:
    found = _diffs(entry, row, ["gs_base"])
    cause = f"the user's GS base came back as {found[0].actual:#x} instead of {found[0].expected:#x}"
    look = (
        "whether the switch saves and loads the user's GS base: KERNEL_GS_BASE inside a kernel that swaps, the GS base "
        "itself in one that does not"
    )
    return Draft("CW204", cause, _descriptor("GS", row) or look, found, ERROR, match)


def _descriptor(register: str, row: Batch) -> str:
    """Where a 32-bit kernel, which has no MSRs for it, goes wrong with a segment's base; empty for the others."""
    if row["mode"][0] != 32:
        return ""
    return (
        f"whether the switch writes the thread's base into the descriptor that {register} names, and loads {register}"
    )


def simd_differences(entry: Batch, row: Batch) -> tuple[Difference, ...]:
    """The XMM and x87 registers and MXCSR that differ between two rows (batches of one) with SIMD state."""
    before, after = entry["simd"][0], row["simd"][0]
    found = []
    for n in range(16):
        if (before["xmm"][n] != after["xmm"][n]).any():
            old, new = (int(v["xmm"][n][0]) | int(v["xmm"][n][1]) << 64 for v in (before, after))
            found.append(Difference(f"xmm{n}", old, new))
    for n in range(8):
        if (before["x87"][n] != after["x87"][n]).any():
            old, new = (int(v["x87"][n][0]) | int(v["x87"][n][1]) << 64 for v in (before, after))
            found.append(Difference(f"st{n}", old, new))
    if entry["mxcsr"][0] != row["mxcsr"][0]:
        found.append(Difference("mxcsr", int(entry["mxcsr"][0]), int(row["mxcsr"][0])))
    return tuple(found)


def _simd(entry: Batch, row: Batch, match: str) -> Draft:
    found = simd_differences(entry, row)
    cause = f"{', '.join(d.field for d in found)} did not survive the handler"
    look = "whether handler code uses these registers (compiler flags), and where they are saved and restored"
    return Draft("CW105", cause, look, found, ERROR, match)


def _wrong_context(entry: Batch, row: Batch, fields: list[str], owner: Batch, match: str) -> Draft:
    what = "the RSP resumed here is that" if fields == ["rsp"] else f"{len(fields)} registers resumed here are those"
    cause = (
        f"{what} of another suspended context: the one interrupted at event "
        f"{int(owner['seq'][0])} (RIP {int(owner['rip'][0]):#x}, CPU {int(owner['cpu'][0])})"
    )
    look = "how the current thread is found between save and restore: per-CPU scratch used after a switch, or a race"
    return Draft("CW107", cause, look, _diffs(entry, row, fields), ERROR, match)


def _wrong_space(entry: Batch, row: Batch, match: str) -> Draft:
    cause = (
        f"the context interrupted under CR3 {int(entry['cr3'][0]):#x} is resumed under CR3 {int(row['cr3'][0]):#x}: "
        "the registers are right, the address space is another's"
    )
    return Draft("CW107", cause, "whether every switch loads CR3", _diffs(entry, row, ["cr3"]), ERROR, match)
