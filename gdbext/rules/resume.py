"""The one law, event by event: an exit against the context it resumes (CW101–CW107, CW301, CW6xx).

Only events that did not pair bit for bit come here. Order of the match, said in each finding: the same RIP, RSP and
address space (exact), then the same thread, then the nearest context; an exit near none of them is a new context.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gdbext.arch import vectors
from gdbext.events.columns import Array, Columns, Indices
from gdbext.events.row import Batch, Flag, How, Kind, concat
from gdbext.ledger import compare
from gdbext.ledger.beginnings import begin_alone
from gdbext.ledger.compare import BIT, agreement, contexts, differences, few_words_apart, is_call, is_user, space
from gdbext.ledger.leftover import Left, Spanning, leftover
from gdbext.ledger.live import Live
from gdbext.ledger.pairing import pair
from gdbext.ledger.pending import ALIKE, Pending, Where, traits
from gdbext.rules import emulation, returns, stale, verdicts
from gdbext.rules.cpu_base import CpuBases
from gdbext.rules.draft import Draft, Judged
from gdbext.rules.fastcalls import FastCalls, is_fast
from gdbext.rules.frames import judge_moved, judge_unbalanced, judge_unreadable, unbalanced_by
from gdbext.rules.history import History
from gdbext.rules.kernel_frames import KernelFrames
from gdbext.rules.linear import LinearWidth
from gdbext.rules.moves import may_end_one, moving_call
from gdbext.rules.policy import Policy
from gdbext.rules.redirects import Redirects
from gdbext.rules.stacklost import call_on_another_stack
from gdbext.rules.verdicts import STRONG_TELLING

MANY = 32
"""Exits from which on it is quicker to compare all with all that waits than to look at each."""


class _Entered:
    """The entries at `places` of a batch, which nothing in it resumes: they wait from then on."""

    def __init__(self, batch: Columns, places: Indices) -> None:
        self.rows = batch.take(places)
        self._whole = batch.pick(places)
        self._places = places
        self._traits = traits(self.rows)
        self._done = 0

    def wait(self, pending: Pending, before: int) -> None:
        """Have those wait that come in front of the place `before` of the batch."""
        these = slice(self._done, int(np.searchsorted(self._places, before)))
        if these.start < these.stop:
            pending.add(self._whole[these], self._traits.of(these))
        self._done = these.stop


class ResumeJudge:
    """Holds the ledger and judges every exit against it."""

    def __init__(self, policy: Policy, history: History, width: LinearWidth) -> None:
        self._policy = policy
        self._width = width
        self._history = history
        self._law = compare.Law(
            compare.mask_of(policy.syscall_returns),
            tuple((slot, policy.tracked[slot].mask) for slot in policy.preserved_slots),
        )
        self._pending = Pending()
        self._redirects = Redirects(policy)
        self._fast = FastCalls()
        self._cpu_bases = CpuBases()
        self._frames = KernelFrames(self._pending, policy)
        self._lost: dict[tuple[int, int], int] = {}
        """The differences already known of pairs of this batch, by event numbers."""
        self.identical = 0
        self.unmatched = 0

    def feed(self, batch: Columns) -> list[Judged]:
        """Judge a batch; its rows are in order of ``seq``."""
        self._cpu_bases.feed(batch)
        batch = contexts(batch)
        suspicious = returns.suspicious(batch, self._policy, self._width)
        pairs = self._fast.pair(batch, pair(batch, self._law, suspicious), self._law, suspicious)
        self._redirects.begin(batch)
        self.identical += len(pairs.exits)
        self.unmatched += int(np.count_nonzero((batch["kind"] == Kind.EXIT) & (batch["flags"] & Flag.SELF != 0)))
        judged: list[Judged] = []
        if not len(pairs.rest):
            return judged
        spanning = Spanning(batch, pairs)
        self._lost = pairs.lost
        moves = may_end_one(batch, pairs.rest, self._history)
        rest = batch.take(pairs.rest)
        waits = (rest["kind"] == Kind.ENTRY) & (rest["flags"] & Flag.UNREADABLE == 0)
        entered = _Entered(batch, pairs.rest[waits])
        alone = self._beginnings(rest, entered, spanning, moves | suspicious[pairs.rest])
        looked_at = np.flatnonzero(~alone & ((rest["kind"] == Kind.EXIT) | (waits & is_fast(rest))))
        left_over = leftover(batch, pairs.rest[looked_at], spanning)
        for left, may_move in zip(left_over, moves[looked_at].tolist(), strict=True):
            entered.wait(self._pending, left.position)
            if left.kind == Kind.ENTRY:
                self._fast.forget_restarted(left, self._pending)
                continue
            live = Live(left, self._pending, batch, spanning)
            if left.flags & Flag.UNREADABLE:
                unreadable = judge_unreadable(left.row, live.all, live.near)
                judged += [(unreadable[0], left.row, unreadable[1])] if unreadable else []
                continue
            judged += self._judge_exit(left, live, bool(suspicious[left.position]), may_move)
        entered.wait(self._pending, len(batch))
        return judged

    def _beginnings(
        self, rows: Columns, entered: _Entered, spanning: Spanning, doubtful: compare.Bools
    ) -> compare.Bools:
        """True for those of the events `rows`, unless `doubtful`, that are exits to new contexts where others began
        before.

        Looking at each would find the same; most of what is left over of a healthy guest is of this kind.
        """
        alone = np.zeros(len(rows), bool)
        exits = np.flatnonzero((rows["kind"] == Kind.EXIT) & ~doubtful & self._redirects.begin_at(rows["rip"]))
        if len(exits) < MANY:
            return alone
        waiting = self._pending.where(), Where.of(entered.rows), Where.of(spanning.rows)
        alone[exits] = begin_alone(rows.take(exits), waiting)
        for rip in rows["rip"][alone].tolist():
            self._redirects.began(rip)
        self.unmatched += int(np.count_nonzero(alone))
        return alone

    def pending(self) -> Batch:
        """The contexts that wait to be resumed."""
        return self._pending.all()

    def _judge_exit(self, left: Left, live: Live, suspicious: bool, may_move: bool) -> Iterator[Judged]:
        row = left.row
        entry, mask = self._take_exact(left, left.traits.key)
        if entry is None and not left.user and not left.flags & Flag.SELF:
            entry, mask = self._take_exact(left, left.as_user)
        match = "exact"
        owner = self._frames.take_owner(left, entry, live.resumed_later) if entry is None or mask else None
        if owner is not None:
            entry, mask, match = owner, self._frames.lost(owner, row, self._law), "nearest"
        elif (
            left.user
            and left.how == How.IRET
            and (entry is None or mask)
            and emulation.goes_on(row, live.newest, entry)
        ):
            self._over(live.newest)
            entry, mask, match = live.newest, emulation.lost(live.newest, row, self._law), "thread"
            self.unmatched += 1
            self.identical -= not mask
        if entry is not None and mask and self._redirects.forked(row, entry, self._history):
            entry = None
        if may_move and (entry is None or mask):
            call = moving_call(row, self._history, self._law)
            if call is not None:
                self._over(call)
                entry, mask = call, 0
        if entry is None:
            yield from self._judge_unmatched(left, live, suspicious)
            return
        if mask & BIT["gs_base"] and self._moved(entry, row):
            mask &= ~int(BIT["gs_base"])
        if mask == 0:
            self.identical += 1
        else:
            mask &= ~self._redirects.excused(entry, row, live.newest, self._history)
            for draft in verdicts.drafts(self._policy, entry, row, mask, match, live):
                yield draft, row, entry
        if suspicious:
            for draft in returns.judge_exit(row, entry, self._policy, self._width.at(int(row["seq"][0]))):
                yield draft, row, entry

    def _moved(self, entry: Batch, row: Batch) -> bool:
        """True if either GS base is the own one of the CPU that ran the context then."""
        return all(
            self._cpu_bases.owns(int(one["cpu"][0]), int(one["gs_base"][0]), int(one["seq"][0])) for one in (entry, row)
        )

    def _take_exact(self, left: Left, key: Array | int) -> tuple[Batch | None, int]:
        """The pending entry with this RIP, RSP and address space that differs least (newest first), consumed.

        None where the exit begins a thread on a stack that another one, of which other registers wait, still uses.
        """
        found = self._exact(left, key)
        if found is None:
            return None, 0
        number, entry, mask = found
        if mask & compare.GPR_BITS and self._redirects.cloned(left.row, self._history):
            return None, 0
        self._pending.take(number)
        return entry, mask

    def _exact(self, left: Left, key: Array | int) -> tuple[int, Batch, int] | None:
        """The number of that entry among the pending ones, its row and what differs, if there is one.

        A call of 32-bit code may return beside its RIP (:mod:`gdbext.rules.fastcalls`).
        """
        numbers = self._pending.find(key)
        calls = [number for number in self._fast.returns_from(left, self._pending) if number not in numbers]
        if not numbers and not calls:
            return None
        rows = self._pending.rows(numbers + calls)
        known = self._lost.get((int(rows["seq"][0]), int(left.row["seq"][0]))) if len(rows) == 1 else None
        if known is not None:
            return numbers[0], rows, known & ~self._fast.may_change(rows)
        exits = concat([left.row] * len(rows)).copy()
        exits["rip"][len(numbers) :] = rows["rip"][len(numbers) :]
        if calls:
            self._fast.landed()
        masks = [
            mask & ~self._fast.may_change(rows[at : at + 1])
            for at, mask in enumerate(differences(rows, exits, self._law).tolist())
        ]
        best = min(range(len(masks)), key=lambda at: masks[at].bit_count())
        return (numbers + calls)[best], rows[best : best + 1], masks[best]

    def _judge_unmatched(self, left: Left, live: Live, suspicious: bool) -> Iterator[Judged]:
        self.unmatched += 1
        if left.flags & Flag.SELF and not suspicious:
            return
        row = left.row
        unbalanced = self._unbalanced(left, live)
        if unbalanced:
            yield unbalanced[0], row, unbalanced[1]
            return
        elsewhere = self._on_another_stack(left, live)
        if elsewhere:
            entry, mask = elsewhere
            past = self._owner_of_rsp(row, live)
            self._over(entry)
            for draft in verdicts.drafts(self._policy, entry, row, mask, "thread", live, past):
                yield draft, row, entry
            return
        near = past = None
        if not self._redirects.begins(left.rip) and not self._redirects.replaced(row, live.newest):
            again = stale.resumed_again(row, live, self._history)
            if again:
                yield again[0], row, again[1]
                return
            if len(live.alike) and not self._redirects.cloned(row, self._history):
                past = self._owner_of_rsp(row, live)
                near = self._nearest(row, live, past)
        if near:
            entry, mask, match = near
            mask &= ~self._redirects.excused(entry, row, live.newest, self._history)
            for draft in verdicts.drafts(self._policy, entry, row, mask, match, live, past):
                yield draft, row, entry
        else:
            self._redirects.began(left.rip)
        if suspicious:
            for draft in returns.judge_exit(
                row, near[0] if near else None, self._policy, self._width.at(int(row["seq"][0]))
            ):
                yield draft, row, near[0] if near else None

    def _unbalanced(self, left: Left, live: Live) -> tuple[Draft, Batch] | None:
        """Judge an iret that pops what lies beside a pending context's frame, or just below a copy of one."""
        if left.how != How.IRET:
            return None
        near = live.near
        found = judge_unbalanced(left.row, near) if len(near) else None
        moved = judge_moved(found[1], left.row, self._history.before(int(found[1]["seq"][0]))) if found else None
        if found and moved:
            return moved, found[1]
        for words, key in enumerate(left.below if not found else (), 1):
            for number in self._pending.find(key):
                entry = self._pending.rows([number])
                return unbalanced_by(entry, left.row, -words, 8), entry
        return found

    def _on_another_stack(self, left: Left, live: Live) -> tuple[Batch, int] | None:
        if not left.user:
            return None
        call, base = live.newest, left.row["gs_base"]
        found = call_on_another_stack(left.row, call, self._history, self._fast, self._law)
        if found is None and len(call) and call["gs_base"][0] != base[0]:  # threads that have one FS base in common
            call = live.thread[live.thread["gs_base"] == base][-1:]
            found = call_on_another_stack(left.row, call, self._history, self._fast, self._law)
        return None if found and self._redirects.replaced(left.row, call) else found

    def _owner_of_rsp(self, row: Batch, live: Live) -> Batch | None:
        """The last system call of another address space that was made with the RSP resumed here (a batch of one).

        Only where a system call waits to be resumed at this RIP with another RSP: its return may have taken the RSP
        that somebody else's call left in per-CPU scratch, and that call may long be over.
        """
        if not bool(is_user(row)[0]) or len(live.on_rsp):
            return None
        if not (space(live.calls) == space(row)).any():
            return None
        past = self._history.before(int(row["seq"][0]))
        past = past[(past["kind"] == Kind.ENTRY) & (past["rsp"] == row["rsp"])]
        past = past[is_call(past) & (space(past) != space(row))][-1:]
        return past if len(past) else None

    def _nearest(self, row: Batch, waiting: Live, past: Batch | None) -> tuple[Batch, int, str] | None:
        """The live context that `row` resumes wrongly, the mask of what differs, and the kind of match; or None.

        past: a context that is over but counts among these.
        None also where the kernel redirects on purpose: fixups, signals, emulated instructions, new threads. A call's
        RSP is wrong only where it is another context's. (A clone's new thread begins on a stack of its choice, but
        deeper than where any call is made on one.) Or where it is off by a few words, and nothing else is.
        """
        live = concat((waiting.alike, past)) if past is not None else waiting.alike
        equal, telling = agreement(live, row)
        like = (equal >= ALIKE) & (is_user(live) == is_user(row))
        if not like.any():
            return None
        live, equal, telling = live[like], equal[like], telling[like]
        owned = bool((is_user(waiting.on_rsp) == is_user(row)).any()) or past is not None
        other_rsp = owned & (live["rsp"] != row["rsp"])
        exits = np.repeat(row, len(live))
        strong = telling >= STRONG_TELLING
        call = is_call(live)
        same_space = space(live) == space(row)
        same_rip, same_rsp = live["rip"] == row["rip"], live["rsp"] == row["rsp"]
        masks = differences(live, exits, self._law)
        restarted = call & same_space & same_rsp & (live["rip"] - row["rip"] == 2)
        moved = same_space & same_rip & ~same_rsp & strong & (~call | other_rsp)
        moved |= self._pushed(live, row, masks) & ~(waiting.calls["rsp"] == row["rsp"]).any()
        jumped = same_space & same_rsp & ~same_rip & strong & ~call
        if jumped.any():
            jumped &= ~self._may_redirect(live, row)
        foreign = ~same_space & same_rip & same_rsp & strong & (equal == 15) & ~call
        elsewhere = ~same_space & same_rip & same_rsp & call & (masks & compare.GPR_BITS == 0)
        if elsewhere.any():
            elsewhere &= (live["fs_base"] == row["fs_base"]) & (live["seq"] < _last_stopped(waiting.all, row))
        foreign |= elsewhere
        for where, cleared in ((restarted, BIT["rip"] | BIT["rax"]), (moved, 0), (jumped, 0), (foreign, 0)):
            hits = np.flatnonzero(where)
            if len(hits):
                best = hits[np.argmax(equal[hits] * 100_000 + hits)]
                mask = int(masks[best]) & ~int(cleared)
                if where is restarted and not mask:
                    self.unmatched -= 1
                    self.identical += 1
                    self._over(live[best : best + 1])
                same_thread = live["fs_base"][best] == row["fs_base"][0] and live["fs_base"][best] != 0
                return live[best : best + 1], mask, "thread" if same_thread else "nearest"
        return None

    def _pushed(self, live: Batch, row: Batch, masks: compare.Mask) -> compare.Bools:
        """True for each of the contexts `live` that the exit `row` pops from where the CPU pushed it, and of which
        nothing differs (`masks`) but RSP, by a few words: however little its registers tell, it is this one."""
        there = (live["frame"] == row["frame"]) & (live["frame"] != 0) & (space(live) == space(row))
        pushed: compare.Bools = there & (masks == BIT["rsp"]) & few_words_apart(live["rsp"], row["rsp"])
        return pushed

    def _over(self, entry: Batch) -> None:
        """The pending `entry` will not be resumed any more."""
        for number in self._pending.find(int(compare.keys(entry)[0])):
            if self._pending.rows([number])["seq"][0] == entry["seq"][0]:
                self._pending.take(number)

    def _may_redirect(self, live: Batch, row: Batch) -> compare.Bools:
        """True where the kernel may resume the context elsewhere on purpose, changing RIP (and a result) alone.

        Exceptions in kernel code go to a fixup; exceptions in user code are emulated, traced or redirected. After an
        interrupt, user code goes on elsewhere with its RSP where a restartable sequence is aborted (in front of that
        address lies what was agreed upon). Where it is not known what lies there, that or a tracer may be the cause
        where another thread ran meanwhile.
        """
        vector = live["vector"]
        exception = (vector < 32) & (vector != vectors.NMI)
        user = is_user(live)
        fixups = self._policy.fixups
        led = np.ones(len(live), bool)
        if fixups is not None:
            to, places = int(row["rip"][0]), zip(vector.tolist(), live["rip"].tolist(), strict=True)
            led[:] = [fixups.lead(number, at, to) for number, at in places]
        allowed: compare.Bools = exception & (user | led)
        if self._redirects.signed(row):
            return allowed | user
        if not user.any() or self._redirects.unsigned(row):
            return allowed
        return allowed | (user & self._switched(live, row))

    def _switched(self, live: Batch, row: Batch) -> compare.Bools:
        """False for each live context that was interrupted on the CPU of the exit `row`, which has not switched
        threads or page tables since."""
        past = self._history.before(int(row["seq"][0]))
        mine = past[past["cpu"] == row["cpu"]]
        last = mine["seq"][(mine["kind"] == Kind.SWITCH_IN) | (mine["kind"] == Kind.CR3)][-1:]
        since = max(last.tolist() + mine["seq"][:1].tolist(), default=int(row["seq"][0]))
        switched: compare.Bools = (live["cpu"] != row["cpu"]) | (live["seq"] < since)
        return switched


def _last_stopped(live: Batch, row: Batch) -> int:
    """When the last of the contexts `live` was interrupted, not by a call, in the address space of the exit `row`; 0 if
    none is waiting there. A process that a call begins has page tables with nobody in them, or nobody that lives on."""
    there = live[is_user(live) & ~is_call(live) & (space(live) == space(row))]
    return int(there["seq"].max()) if len(there) else 0
