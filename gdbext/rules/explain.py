"""Complete a finding with what the guest's code, the stores into its save areas and the events before it say."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.frames import FRAME_FIELDS, word_size
from gdbext.arch.registers import (
    GPR64,
    MSR_FS_BASE,
    MSR_GS_BASE,
    MSR_KERNEL_GS_BASE,
    MSR_NAMES,
)
from gdbext.code.compare import Kind as Fact
from gdbext.code.compare import Statement
from gdbext.events.row import Batch, Flag, How, Kind
from gdbext.ledger.compare import FIELD_BITS, agreement, is_call, is_user
from gdbext.rules.areas import AreaJudge
from gdbext.rules.callabi import CallAbi
from gdbext.rules.codes import ERROR
from gdbext.rules.convention import Convention
from gdbext.rules.draft import Draft
from gdbext.rules.finding import LOOK_AT_ALL, LOOK_AT_AREA, UNKNOWN_SLOT, UNSEEN, Finding
from gdbext.rules.guest import GuestView
from gdbext.rules.history import History
from gdbext.rules.laststores import Write
from gdbext.rules.pathfacts import PathFacts
from gdbext.rules.stale import same_again
from gdbext.rules.stores import FrameStores, frame_span
from gdbext.rules.writers import Writers

_CONTEXT_CODES: Final = frozenset({"CW101", "CW102", "CW103", "CW104", "CW106", "CW603"})
"""Findings about a saved register: they have a save path, a slot and a last writer."""
_WHOLE_CODES: Final = frozenset({"CW107", "CW404"})
"""Findings about a context that is another's: its registers came from somebody's slots."""
_BASES: Final = {"fs_base": (MSR_FS_BASE,), "gs_base": (MSR_GS_BASE, MSR_KERNEL_GS_BASE)}
"""The MSRs by which a segment base is loaded, in place of a slot."""
_TRIES: Final = 1000
"""How often a finding is explained anew to learn its slot's last writer."""
_TELLING: Final = 0xFFFF
"""A register's old value above this is no coincidence."""
_CAUSE: Final = -1
_CONSEQUENCE: Final = 1
"""Ranks of drafts beside the finding they belong to."""


class Explainer:
    """Explains findings of one engine. ``abi``: what it excuses of system calls."""

    def __init__(
        self,
        guest: GuestView,
        history: History,
        areas: AreaJudge,
        frames: FrameStores,
        writers: Writers,
        convention: Convention,
    ) -> None:
        self._writers = writers
        self._history = history
        self._areas = areas
        self._frames = frames
        self._paths = PathFacts(guest)
        self.abi = CallAbi(self._paths, history, convention)
        self._tries: dict[tuple[object, ...], int] = {}

    def could_say_more(self, finding: Finding, event: int) -> bool:
        """True if a finding that comes again at `event` may now have a last writer, which was not yet watched the first
        time."""
        concerned = finding.code in _CONTEXT_CODES or finding.code == "CW302"
        concerned = concerned and not self.abi.covers(finding)
        if finding.writer_seen or not concerned or not (self._areas.known(event) or self._frames.known(event)):
            return False
        tries = self._tries.get(finding.key(), 0)
        self._tries[finding.key()] = tries + 1
        return tries < _TRIES

    def complete(self, finding: Finding) -> list[Draft]:
        """Add to the finding's cause, slot and writer; return what this shows besides it: of a warning, warnings."""
        extra = self._explain(finding)
        self._add_rest(finding)
        self.abi.weigh(finding)
        finding.name_registers()
        return extra if finding.severity == ERROR else [replace(draft, severity=finding.severity) for draft in extra]

    def _explain(self, finding: Finding) -> list[Draft]:
        entry, row = finding.entry_row, finding.row
        if entry is not None and finding.code == "CW105":
            self._add_calculation(finding, entry)
        if finding.code == "CW402" and finding.writer is None and row is not None:
            self._add_push(finding, entry if entry is not None else row)
        fields = [d.field for d in finding.differences if d.field in FIELD_BITS]
        if entry is None or row is None or not fields:
            return []
        if fields == ["rflags"] and row["how"][0] == How.FAR and row["flags"][0] & Flag.FLAGS_PARTIAL:
            return []  # what came back is not known
        if finding.code == "CW108":
            self._add_path(finding, self._paths.switch_statements(entry, row), fields, False)
        if finding.code in _WHOLE_CODES and finding.writer is None:
            self._add_source(finding, entry, row, fields[0])
        if finding.code not in _CONTEXT_CODES or row["kind"][0] != Kind.EXIT:
            return []
        statements = self._paths.statements(entry, row)
        in_place = self._paths.frame_in_place(entry, row) is True
        if in_place:  # what it holds the CPU has stored
            statements = [s for s in statements if not (_not_stored(s) and set(s.fields) <= {*FRAME_FIELDS})]
        clash = next((s for s in statements if s.kind is Fact.CLASH and set(s.fields) & set(fields)), None)
        area = self._areas.area_of(entry, finding.event)
        write = self._areas.last_write(area, fields[0], finding.event) if area is not None else None
        if write is not None:
            finding.slot, finding.writer = f"slot {self._areas.slot_number(fields[0])}", self._writers.of(write)
        elif area is None:
            self._areas.ask(fields[0])
        beyond = _beyond_frame(finding, entry)
        if beyond is not None:
            self._add_write(finding, entry, write)
            return [beyond]
        skipped = self._paths.stores(entry, row, fields[0])
        told = self._add_path(finding, statements, fields, skipped)
        forgotten = any(_not_stored(statement) for statement in told)
        by = next((statement.by for statement in told if statement.by is not None), None)
        if write is None and by is not None:
            finding.writer = self._writers.by_code(by)
        seen = self._add_when_seen(finding, entry, fields[0])
        stale = self._add_write(finding, entry, write, forgotten and not skipped)
        if not told and finding.writer is None:
            self._add_left(finding, entry, row, fields[0])
        extra = []
        may_be_old = finding.code in ("CW101", "CW102") and not told
        again = same_again(row, int(entry["seq"][0]), self._history) if may_be_old else None
        if clash is not None:
            extra.append(_clash(clash, finding))
        elif again is not None:
            why = f"all that came back is the context of event {int(again['seq'][0])}, which was resumed already"
            # With one register lost alone, all else is the newer context's as well: it is that slot that is old.
            extra.append(_stale(finding, why, _CAUSE if skipped or len(fields) > 1 else _CONSEQUENCE))
        elif in_place and fields[0] in FRAME_FIELDS:
            pass  # it is as the CPU pushed it
        elif stale or (finding.code == "CW101" and (skipped if forgotten else seen and not told)):
            why = stale or f"{fields[0]} was not stored by this save"
            extra.append(_stale(finding, why, _CAUSE if skipped else _CONSEQUENCE))
        overwritten = [] if extra else self._overwritten(finding, entry, row, fields)
        if finding.writer is None and not overwritten and finding.code != "CW302":
            self._add_stacked(finding, entry, row, fields[0])
        return extra + overwritten

    def _add_path(
        self, finding: Finding, statements: list[Statement], fields: list[str], skipped: bool
    ) -> list[Statement]:
        """Say what the code does wrong with the fields: never stored (but `skipped`: on another way it is), other slot,
        exchanged."""
        told = [s for s in statements if s.fault and set(s.fields) & set(fields)]
        for statement in told[:2]:
            text = f"on one of its ways {statement.text}" if skipped and _not_stored(statement) else statement.text
            finding.cause += f". {text[:1].upper()}{text[1:]}"
            if finding.slot is None and statement.word is not None:
                finding.slot = f"slot {statement.word}"
        return told

    def _add_write(
        self, finding: Finding, entry: Batch, write: Write | None, forgotten: bool = False, slot: str = ""
    ) -> str:
        """Say who wrote the slot last; why it is stale, if that was before the context was interrupted.

        forgotten: the entry's code does not store it.  slot: what to call it, other than by its number.
        """
        if write is None:
            return ""
        finding.writer = self._writers.of(write)
        slot = slot or (finding.slot or "").capitalize()
        where = finding.writer.symbol or f"{write.pc:#x}"
        if write.event >= int(entry["seq"][0]):
            finding.cause += f". {slot} was written on this save, by {where}"
            return ""
        path = "the system call path" if bool(is_call(entry)[0]) else "the interrupt path"
        never = f"{path} never stores it" if forgotten else "this save never stored it"
        finding.cause += f". {slot} was last written by {self._path_of(write)} at {where}, {self._ago(write, entry)}"
        finding.cause += f"; {never}"
        return f"{slot[:1].lower()}{slot[1:]} was last written at event {write.event}"

    def _add_rest(self, finding: Finding) -> None:
        """Say of a saved register of which neither slot nor last writer is known by now why that is so."""
        concerned = finding.code in _CONTEXT_CODES | _WHOLE_CODES or finding.code in ("CW105", "CW204")
        row = finding.row
        if not concerned or finding.slot or finding.writer or row is None or finding.entry_row is None:
            return
        field = finding.differences[0].field if finding.differences else ""
        if field in _BASES:
            finding.cause += self._base_written(finding, finding.entry_row, row, field)
        elif finding.code == "CW105":
            finding.cause += (
                ". Stores into the image from which FXRSTOR loads it are not watched: who wrote it last is not known"
            )
        elif UNSEEN not in finding.cause and field != "cr3" and row["kind"][0] == Kind.EXIT:
            finding.cause += UNKNOWN_SLOT

    def _base_written(self, finding: Finding, entry: Batch, row: Batch, field: str) -> str:
        """Who wrote the MSR last that holds a segment base, which `finding` then names."""
        if row["mode"][0] == 32:
            return ". It lies in a descriptor in memory, stores into which are not watched"
        past = self._history.before(finding.event)
        written = (past["kind"] == Kind.BASE) & (past["cpu"] == row["cpu"]) & np.isin(past["addr"], _BASES[field])
        last = past[written & (past["value"] == finding.differences[0].actual)][-1:]
        if not len(last):
            return f". No write of this value to {' or '.join(map(_msr, _BASES[field]))} was seen"
        write, msr = Write.of(last), int(last["addr"][0])
        finding.slot, finding.writer = f"MSR {msr:X}h", self._writers.of(write)
        where = finding.writer.symbol or f"{write.pc:#x}"
        when = (
            f"event {write.event}, {self._ago(write, entry)}"
            if write.event < entry["seq"][0]
            else f"event {write.event}"
        )
        return f". {_msr(msr)} was last written at {when}, by {where}: nothing loaded the thread's own since"

    def _blame(self, finding: Finding, pc: int) -> str:
        """Name the instruction at `pc` as the writer, as far as code shows it; return what to call it."""
        finding.writer = self._writers.by_code(pc)
        return finding.writer.symbol or f"{pc:#x}"

    def _add_push(self, finding: Finding, row: Batch) -> None:
        """Say which push moved the stack of the interrupted code, as far as that code shows it."""
        at = self._paths.pushed_before(row)
        if at is not None:
            where = self._blame(finding, at)
            finding.cause += f". In front of where it was interrupted, that code pushes, at {where}"

    def _add_calculation(self, finding: Finding, entry: Batch) -> None:
        """Say where the handler's own code calculates in a SIMD register that did not survive it."""
        register = finding.differences[0].field if finding.differences else ""
        at = self._paths.calculates(entry, register) if register.startswith("xmm") else None
        if at is not None:
            where = self._blame(finding, at)
            finding.cause += f". The handler's own code calculates in {register}, at {where}"

    def _add_left(self, finding: Finding, entry: Batch, row: Batch, field: str) -> None:
        """Say where the entry path stores a register that the exit path never loads."""
        left = self._paths.not_loaded(entry, row, field)
        if left is not None:
            finding.slot = f"slot {left[0]}"
            where = self._blame(finding, left[1])
            finding.cause += (
                f". The entry path stores {field} in slot {left[0]}, at {where}, and the exit path never loads it "
                "from there"
            )

    def _add_source(self, finding: Finding, entry: Batch, row: Batch, field: str) -> None:
        """Say from which slot a context that is another's was loaded, and who wrote that last."""
        shared = self._paths.shared(entry, row, field)
        if shared is not None:
            finding.slot = f"slot {shared[0]}"
            where = self._blame(finding, shared[1])
            finding.cause += (
                f". The exit path loads it from {shared[0]}, which all threads share, and where {where} stores it: it "
                "finds that of the thread that came that way last"
            )
            return
        area = self._areas.area_of(row, finding.event)
        write = self._areas.last_write(area, field, finding.event) if area is not None else None
        if write is None or area is None:
            return
        number = self._areas.slot_number(field)
        finding.slot, finding.writer = f"slot {number}", self._writers.of(write)
        where = finding.writer.symbol or f"{write.pc:#x}"
        finding.cause += (
            f". It lies in the save area at {area.start:#x}, whose slot {number} was last written by "
            f"{self._path_of(write)} at {where}, event {write.event} on CPU {write.cpu}"
        )

    def _add_stacked(self, finding: Finding, entry: Batch, row: Batch, field: str) -> None:
        """Say who wrote last where the exit found `field` on its stack; have it watched, and say so, if that was not
        seen."""
        at = self._paths.loaded_from(row, entry, field)
        if at is None:
            if finding.slot is not None:
                finding.cause, finding.look_at = finding.cause + UNSEEN, finding.look_at + LOOK_AT_AREA
            return
        finding.slot = finding.slot or f"slot {field}"
        word = word_size(int(row["mode"][0]))
        mask = (1 << 8 * word) - 1
        write = self._frames.last(at, finding.event)
        if write is not None and write.value & mask == int(row[field][0]) & mask:
            self._add_write(finding, entry, write, slot=f"Its slot, at {at:#x} on the stack,")
            return
        self._frames.follow(at, at + word, finding.event)
        finding.cause += UNSEEN
        finding.look_at += LOOK_AT_ALL

    def _path_of(self, write: Write) -> str:
        """The handler in which a store was made."""
        last = self._writers.turn(write, Kind.ENTRY)
        return _path(last) if last is not None else "code"

    def _ago(self, write: Write, entry: Batch) -> str:
        count = self._history.entries_between(write.event, int(entry["seq"][0]))
        return f"{count} interrupts ago" if count != 1 else "one interrupt ago"

    def _add_when_seen(self, finding: Finding, entry: Batch, field: str) -> bool:
        """Say when the thread had the value that came back; True if that is telling."""
        actual = finding.differences[0].actual
        if field not in ("rflags", "fs_base") and actual <= _TELLING:
            return False
        seen = self._history.last_with(entry, field, actual)
        if seen is None:
            return False
        count = self._history.entries_between(int(seen["seq"][0]), int(entry["seq"][0]))
        what = "system call" if bool(is_call(seen)[0]) else vectors.name(int(seen["vector"][0]))
        finding.cause += (
            f". The value that came back is the one this thread had at its {what} at event {int(seen['seq'][0])}, "
            f"{count} {'entry' if count == 1 else 'entries'} before: the slot was not written since"
        )
        return True

    def _overwritten(self, finding: Finding, entry: Batch, row: Batch, fields: list[str]) -> list[Draft]:
        """CW302 where all that came back wrong is words of the CPU's own frame, which the exit pops in place or the
        paths copy there and back: `finding` becomes it where no register but RIP and RSP was lost."""
        elsewhere = not set(fields) <= set(FRAME_FIELDS) or int(agreement(entry, row)[0][0]) < len(GPR64) - 1
        if elsewhere or finding.code == "CW603" or not int(entry["frame"][0]):
            return []
        in_place = self._paths.frame_in_place(entry, row) is True
        seen = self._frames.change(entry, row, fields[0]) is not None
        if not seen and not in_place and not self._copied(finding, entry, row, fields):
            return []
        self._follow(entry, row)
        change = self._frames.change(entry, row, fields[0])
        draft = replace(_overwritten(finding, fields, in_place), slot=f"slot {fields[0]}")
        finding.slot = finding.slot or draft.slot
        if change is None:
            finding.cause, finding.look_at = finding.cause + UNSEEN, finding.look_at + LOOK_AT_ALL
            draft = replace(draft, cause=draft.cause + UNSEEN, look_at=draft.look_at + LOOK_AT_ALL)
        else:
            finding.writer, finding.slot = self._writers.of(change), draft.slot
            cause = f"{draft.cause}{_by(change, finding.writer.symbol)}"
            draft = replace(draft, cause=cause, writer=change)
        if set(fields) <= {"rip", "rsp"}:  # no register was lost: this says all of it
            finding.code, finding.cause, finding.look_at = draft.code, draft.cause, draft.look_at
            return []
        return [draft]

    def _follow(self, entry: Batch, row: Batch) -> None:
        """Have the stores into this frame seen from now on, and into those of the other threads entered of late."""
        past = self._history.before(int(row["seq"][0]))
        past = past[(past["kind"] == Kind.ENTRY) & (past["frame"] != 0) & is_user(past)]
        others = np.unique(past["frame"], return_index=True)[1].tolist()
        for frame in (entry, *(past[at : at + 1] for at in others)):
            self._frames.follow(*frame_span(frame), int(row["seq"][0]))

    def _copied(self, finding: Finding, entry: Batch, row: Batch, fields: list[str]) -> bool:
        """True if the save copied a wrong word: the paths are right, and the slot, if it is watched, holds what it was
        given by this save, which was never the right value."""
        if not self._paths.copies(entry, row, fields):
            return False
        area = self._areas.area_of(entry, finding.event)
        write = self._areas.last_write(area, fields[0], finding.event) if area is not None else None
        if area is None or write is None:
            return True
        before = self._areas.last_write(area, fields[0], write.event)
        came = int(entry["seq"][0])
        right = before is not None and before.event > came and before.value == int(entry[fields[0]][0])
        return write.event > came and write.value == int(row[fields[0]][0]) and not right


def _path(entry: Batch) -> str:
    """The handler of the ENTRY row `entry` (a batch of one), in words."""
    if bool(is_call(entry)[0]):
        return "the system call path"
    if int(entry["how"][0]) == How.INTERRUPT:
        return "the interrupt path"
    return f"the path of {vectors.name(int(entry['vector'][0]))}"


def _msr(number: int) -> str:
    return f"{MSR_NAMES[number]} (MSR {number:X}h)"


def _by(change: Write, symbol: str | None) -> str:
    where = f"{symbol} ({change.pc:#x})" if symbol else f"{change.pc:#x}"
    return f". It was the store of {change.value:#x} at {where}, event {change.event}"


def _not_stored(statement: Statement) -> bool:
    return statement.kind in (Fact.NEVER_STORED, Fact.LOST)


def _beyond_frame(finding: Finding, entry: Batch) -> Draft | None:
    """CW403 where ESP or SS came back as the words above a frame that, on the same ring, holds neither."""
    if not entry["flags"][0] & Flag.NO_STACK:
        return None
    above = dict(zip(("rsp", "ss"), entry["stack"][0][3:5].tolist(), strict=True))
    found = tuple(d for d in finding.differences if d.field in above and d.actual == above[d.field])
    if not found:
        return None
    name = found[0].field
    cause = (
        f"slot {name} was given {found[0].actual:#x}, the word above the frame: an interrupt on the same ring pushes "
        "RIP, CS and RFLAGS alone, and the words above them are the interrupted code's own stack"
    )
    look = "the save of contexts interrupted in the kernel: its SP is the address behind the frame, not a word in it"
    by = finding.writer
    return Draft("CW403", cause, look, found, match=finding.match, slot=f"slot {name}", writer=by, rank=_CAUSE)


def _clash(statement: Statement, finding: Finding) -> Draft:
    slot = f"slot {statement.word}" if statement.word is not None else None
    text = statement.text[:1].upper() + statement.text[1:]
    look = "the slot numbers of the save path beside those of the restore path: each register needs its own"
    found = finding.differences
    return Draft("CW405", text, look, found, match=finding.match, slot=slot, writer=finding.writer, rank=_CAUSE)


def _stale(finding: Finding, why: str, rank: int) -> Draft:
    field = finding.differences[0].field
    cause = f"the {field} resumed is a stale one: {why}, before the context was interrupted at event {finding.entry}"
    look = "the condition under which this save skips the slot, or the path that never stores it"
    found = finding.differences[:1]
    return Draft("CW404", cause, look, found, ERROR, finding.match, slot=finding.slot, writer=finding.writer, rank=rank)


def _overwritten(finding: Finding, fields: list[str], in_place: bool) -> Draft:
    listed = ", ".join(field.upper() for field in fields)
    if in_place:
        cause = f"the exit pops the very frame that the CPU pushed, and its {listed} changed while the handler ran"
    else:
        cause = (
            f"the paths copy {listed} from the frame that the CPU pushed to a save area and load it from there, all "
            "as it should be; what they copied had changed"
        )
    cause += ": something wrote into a live hardware frame"
    look = "what the handler itself and its exit path do to the frame, then stray writes near the top of this stack"
    # Flags alone are seldom hit by a stray store: what is lost says more than where.
    rank = _CONSEQUENCE if fields == ["rflags"] else _CAUSE
    return Draft("CW302", cause, look, finding.differences, match=finding.match, rank=rank)
