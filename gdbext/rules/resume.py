"""The one law, event by event: an exit against the context it resumes (CW101–CW107, CW301, CW6xx).

Only events that did not pair bit for bit come here. Order of the match, said in each finding: the same RIP, RSP and
address space (exact), then the same thread, then the nearest context; an exit near none of them is a new context.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from gdbext.arch import flags as rf
from gdbext.arch import vectors
from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Flag, Kind
from gdbext.ledger import compare
from gdbext.ledger.compare import BIT, agreement, differences, is_call, is_user, keys, space
from gdbext.ledger.pairing import pair
from gdbext.ledger.pending import Pending
from gdbext.rules import returns
from gdbext.rules.codes import ERROR, WARNING
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.finding import Difference
from gdbext.rules.frames import judge_unbalanced
from gdbext.rules.policy import Policy

STRONG_EQUAL: Final = 13
"""Of the 15 general registers besides RSP, how many must agree for a match by likeness ..."""
STRONG_TELLING: Final = 4
"""... and how many of those must hold something other than zero."""


class ResumeJudge:
    """Holds the ledger and judges every exit against it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._call_mask = compare.may_change(policy.syscall_returns)
        self._pending = Pending()
        self._last_return: dict[int, Batch] = {}
        self.identical = 0
        self.unmatched = 0

    def feed(self, batch: Batch) -> list[Judged]:
        """Judge a batch; its rows are in order of ``seq``."""
        suspicious = returns.suspicious(batch, self._policy)
        pairs = pair(batch, self._call_mask, suspicious)
        self.identical += len(pairs.exits)
        self.unmatched += int(((batch["kind"] == Kind.EXIT) & (batch["flags"] & Flag.SELF != 0)).sum())
        judged: list[Judged] = []
        for index in pairs.rest:
            row = batch[index : index + 1]
            if row["flags"][0] & Flag.UNREADABLE:
                continue
            if row["kind"][0] == Kind.ENTRY:
                if suspicious[index]:
                    judged += self._judge_entry(batch, int(index))
                self._pending.add(int(keys(row)[0]), row)
                continue
            spanning = pairs.entries[(pairs.entries < index) & (pairs.exits > index)]
            judged += self._judge_exit(row, batch[spanning], bool(suspicious[index]))
        self._remember_returns(batch)
        return judged

    def pending(self) -> Batch:
        """The contexts that wait to be resumed."""
        return self._pending.all()

    def _judge_entry(self, batch: Batch, index: int) -> Iterator[Judged]:
        """A CS/SS pair that shows itself at an entry from user mode: blame the exit that loaded it."""
        row = batch[index : index + 1]
        cpu = int(row["cpu"][0])
        before = _user_returns(batch[:index])
        before = before[before["cpu"] == cpu]
        last = before[-1:] if len(before) else self._last_return.get(cpu)
        for draft in returns.judge_entry(row, last):
            yield draft, row, None

    def _judge_exit(self, row: Batch, spanning: Batch, suspicious: bool) -> Iterator[Judged]:
        entry, mask = self._take_exact(row)
        if entry is None:
            yield from self._judge_unmatched(row, spanning, suspicious)
            return
        if mask == 0:
            self.identical += 1
        else:
            live = self._live(row, spanning)
            for draft in self._drafts(entry, row, mask, "exact", live):
                yield draft, row, entry
        if suspicious:
            for draft in returns.judge_exit(row, entry, self._policy):
                yield draft, row, entry

    def _take_exact(self, row: Batch) -> tuple[Batch | None, int]:
        """The pending entry with this RIP, RSP and address space that differs least (newest first), consumed."""
        slots = self._pending.find(int(keys(row)[0]))
        if not slots:
            return None, 0
        rows = self._pending.rows(slots)
        masks = differences(rows, np.repeat(row, len(rows)), self._call_mask)
        best = int(np.argmin([int(mask).bit_count() for mask in masks]))
        self._pending.take(slots[best])
        return rows[best : best + 1], int(masks[best])

    def _live(self, row: Batch, spanning: Batch) -> Batch:
        """Every context that was interrupted before `row` and not yet resumed, oldest first."""
        pending = self._pending.all()
        if not len(spanning):
            return pending
        both = np.concatenate((pending, spanning)) if len(pending) else spanning
        ordered: Batch = both[np.argsort(both["seq"], kind="stable")]
        return ordered

    def _judge_unmatched(self, row: Batch, spanning: Batch, suspicious: bool) -> Iterator[Judged]:
        self.unmatched += 1
        if row["flags"][0] & Flag.SELF and not suspicious:
            return
        live = self._live(row, spanning)
        unbalanced = judge_unbalanced(row, live)
        if unbalanced:
            yield unbalanced[0], row, unbalanced[1]
            return
        near = self._nearest(row, live)
        if near:
            entry, mask, match = near
            for draft in self._drafts(entry, row, mask, match, live):
                yield draft, row, entry
        if suspicious:
            for draft in returns.judge_exit(row, near[0] if near else None, self._policy):
                yield draft, row, near[0] if near else None

    def _nearest(self, row: Batch, live: Batch) -> tuple[Batch, int, str] | None:
        """The live context that `row` resumes wrongly, the mask of what differs, and the kind of match; or None.

        None also where the kernel redirects on purpose: fixups, signals, emulated instructions, new threads.
        """
        live = live[is_user(live) == is_user(row)] if len(live) else live
        if not len(live):
            return None
        exits = np.repeat(row, len(live))
        equal, telling = agreement(live, exits)
        strong = (equal >= STRONG_EQUAL) & (telling >= STRONG_TELLING)
        call = is_call(live)
        same_space = space(live) == space(row)
        same_rip, same_rsp = live["rip"] == row["rip"], live["rsp"] == row["rsp"]
        masks = differences(live, exits, self._call_mask)
        restarted = call & same_space & same_rsp & (live["rip"] - row["rip"] == 2) & (equal >= STRONG_EQUAL)
        other_rsp = _rsp_of_another(row, live, same_space)
        moved = same_space & same_rip & ~same_rsp & strong & (~call | other_rsp)
        jumped = same_space & same_rsp & ~same_rip & strong & ~call & ~self._may_redirect(live, row)
        foreign = ~same_space & same_rip & same_rsp & strong & (equal == 15) & ~call
        for where, cleared in ((restarted, BIT["rip"] | BIT["rax"]), (moved, 0), (jumped, 0), (foreign, 0)):
            hits = np.flatnonzero(where)
            if len(hits):
                best = hits[np.argmax(equal[hits] * 100_000 + hits)]
                mask = int(masks[best]) & ~int(cleared)
                if where is restarted and not mask:
                    self.unmatched -= 1
                    self.identical += 1
                same_thread = live["fs_base"][best] == row["fs_base"][0] and live["fs_base"][best] != 0
                return live[best : best + 1], mask, "thread" if same_thread else "nearest"
        return None

    def _may_redirect(self, live: Batch, row: Batch) -> compare.Bools:
        """True where the kernel may resume the context elsewhere on purpose, changing RIP (and a result) alone.

        Exceptions in kernel code go to a fixup; exceptions in user code are emulated, traced or redirected.
        """
        vector = live["vector"]
        exception = (vector < 32) & (vector != vectors.NMI)
        user = is_user(live)
        fixups = self._policy.fixups
        known = fixups is None or int(row["rip"][0]) in fixups
        allowed: compare.Bools = exception & (user | known)
        return allowed | (user & self._policy.user_redirects)

    def _drafts(self, entry: Batch, row: Batch, mask: int, match: str, live: Batch) -> list[Draft]:
        """What the mask of differences means, one draft per code."""
        fields = compare.names(mask)
        call = bool(is_call(entry)[0])
        vector = int(entry["vector"][0])
        severity = WARNING if vector in vectors.TRACER_MAY_EDIT else ERROR
        others = live[live["seq"] != entry["seq"]]
        if match != "exact" and bool((space(entry) != space(row))[0]):
            return [_wrong_space(entry, row, match)]
        general = [name for name in fields if name in GPR64 or name == "rip"]
        owner = _owner_of(row, others, general)
        if owner is not None:
            return [_wrong_context(entry, row, general, owner, match)]
        drafts = []
        if general:
            drafts.append(_registers(entry, row, general, call, match, severity))
        if "rflags" in fields:
            drafts.append(_flags(entry, row, match, severity))
        selectors = [name for name in fields if name in ("cs", "ss", "ds", "es", "fs", "gs")]
        if selectors:
            drafts.append(_selectors(entry, row, selectors, match))
        if "fs_base" in fields:
            drafts.append(_fs_base(entry, row, others, match))
        if "gs_base" in fields and not _exchanged(entry, row):
            drafts.append(_user_gs(entry, row, match))
        if "simd" in fields:
            drafts.append(_simd(entry, row, match))
        return drafts

    def _remember_returns(self, batch: Batch) -> None:
        back = _user_returns(batch)
        for cpu in np.unique(back["cpu"]):
            self._last_return[int(cpu)] = back[back["cpu"] == cpu][-1:].copy()


def _user_returns(batch: Batch) -> Batch:
    found: Batch = batch[(batch["kind"] == Kind.EXIT) & is_user(batch)]
    return found


def _rsp_of_another(row: Batch, live: Batch, same_space: compare.Bools) -> compare.Bools:
    """True for each live context if the resumed RSP is that of a live context with another RSP than its own."""
    owners = same_space & (live["rsp"] == row["rsp"])
    result: compare.Bools = np.full(len(live), bool(owners.any())) & ~owners
    return result


def _owner_of(row: Batch, others: Batch, fields: list[str]) -> Batch | None:
    """The other suspended context whose registers were resumed instead, or None.

    Four or more registers that all are another context's, or an RSP that is another's in the same address space.
    """
    if not len(others):
        return None
    equal, telling = agreement(others, np.repeat(row, len(others)))
    swapped = (equal == 15) & (telling >= STRONG_TELLING) & (len(fields) >= 4)
    if fields == ["rsp"]:
        swapped |= (others["rsp"] == row["rsp"]) & (space(others) == space(row)) & (is_user(others) == is_user(row))
    hits = np.flatnonzero(swapped)
    return others[hits[-1:]] if len(hits) else None


def _exchanged(entry: Batch, row: Batch) -> bool:
    """True if the active base at exit is the kernel's: the wrong parity, which the GS rules judge."""
    return bool(row["gs_base"][0] == entry["kernel_gs_base"][0] and entry["gs_base"][0] != entry["kernel_gs_base"][0])


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
    if exchanged:
        pairs = "; ".join(f"{a} came back with the value of {b} and {b} with that of {a}" for a, b in exchanged)
        cause = f"{pairs}: two slots are exchanged between save and restore"
        look = "the order of the slots (or of push and pop) on the save path beside that of the restore path"
    elif call:
        what = vectors.name(int(entry["vector"][0]))
        cause = f"{what} returned with {listed} changed; a system call may change only its results and clobbers"
        look = "where the system call path saves and restores it, or loads it after the restore"
    elif fields == ["rip"]:
        cause = "the context is whole but for RIP, and nothing that may redirect it was seen"
        look = "who writes the saved RIP"
    else:
        cause = f"{listed} did not survive the handler: it was not saved, not restored, or overwritten in between"
        look = "whether the entry path stores it and the exit path loads it from the same slot"
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


def _selectors(entry: Batch, row: Batch, fields: list[str], match: str) -> Draft:
    found = _diffs(entry, row, fields)
    for d in found:
        if d.field == "cs" and d.expected & 3 > d.actual & 3:
            cause = f"user code (CS {d.expected:#x}) is resumed with CS {d.actual:#x}, privilege level {d.actual & 3}"
            return Draft("CW603", cause, "who writes the saved CS", (d,), ERROR, match)
    listed = ", ".join(d.field.upper() for d in found)
    cause = f"{listed} came back as {', '.join(f'{d.actual:#x}' for d in found)}"
    return Draft(
        "CW103", cause, "whether the entry path saves the selectors and the exit reloads them", found, ERROR, match
    )


def _fs_base(entry: Batch, row: Batch, others: Batch, match: str) -> Draft:
    found = _diffs(entry, row, ["fs_base"])
    value = row["fs_base"][0]
    cause = f"the thread's FS base (its thread-local storage) came back as {int(value):#x}"
    owners = others[is_user(others) & (others["fs_base"] == value)] if len(others) else others
    if value == 0:
        cause += ": it was cleared"
    elif len(owners):
        cause += f": that of the thread suspended at event {int(owners['seq'][-1])} (CR3 {int(owners['cr3'][-1]):#x})"
    look = "whether the switch writes FS base (wrmsr C0000100h, wrfsbase) for every thread, and saves it before"
    return Draft("CW104", cause, look, found, ERROR, match)


def _user_gs(entry: Batch, row: Batch, match: str) -> Draft:
    found = _diffs(entry, row, ["gs_base"])
    cause = f"the user's GS base came back as {found[0].actual:#x} instead of {found[0].expected:#x}"
    look = "whether the switch saves and loads KERNEL_GS_BASE (which holds the user's base inside the kernel)"
    return Draft("CW204", cause, look, found, ERROR, match)


def _simd(entry: Batch, row: Batch, match: str) -> Draft:
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
    cause = f"{', '.join(d.field for d in found)} did not survive the handler"
    look = "whether handler code uses these registers (compiler flags), and where they are saved and restored"
    return Draft("CW105", cause, look, tuple(found), ERROR, match)


def _wrong_context(entry: Batch, row: Batch, fields: list[str], owner: Batch, match: str) -> Draft:
    what = "RSP" if fields == ["rsp"] else f"{len(fields)} registers"
    cause = (
        f"{what} resumed here are those of another suspended context: the one interrupted at event "
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
