"""Find the save areas of a live guest, have the source watch them, and tell the rules where they are.

What a profile (shipped, written or learnt) says is evaluated at entries: the interrupted context's area by its
``current`` expression, all areas by its ``[areas]`` table. Where no profile knows an area, one is learnt from the code
of the first entries seen. Each new area becomes a row of kind AREA, a learnt layout rows of kind SLOT, so that a
recording replays with the same knowledge. An expression that reads unmapped memory, or an area outside memory, costs
that area alone and is said once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gdbext.errors import CtxwatchError, NotCapable, UsageError
from gdbext.events.row import ROW, SLOT_NAMES, Batch, Flag, Kind, concat
from gdbext.ledger.compare import is_user
from gdbext.profiles.expression import Expression, Scope
from gdbext.profiles.profile import Profile
from gdbext.sources.base import Capability, Source
from gdbext.sources.learning import Learner, Read

MAX_AREAS: Final = 256
"""Areas watched at most; each costs a check at every store into its page."""
EAGER: Final = 64
"""Looks without pause at the start; later ones are INTERVAL apart."""
CLOSELY: Final = 400
"""Entries from the start during which the guest waits at every exit that resumes no context as it was."""
INTERVAL: Final = 0.05
"""Seconds."""
FEW: Final = 24
"""Ranges watched where each store stops the guest: GDB sets and clears them all at each stop."""
MAX_FRAMES: Final = 4096
"""Places of frames that are kept; a kernel with more has no room for watchpoints."""
_FRAME: Final = 6 * 8
"""Bytes that the CPU pushes at most: five words, and an error code below them."""
MAX_SPACES: Final = 64
"""Loads of CR3 of a batch that are looked at: the last ones count."""
FXSAVE_WRITES: Final = 416
"""Bytes that FXSAVE writes of its image; what follows is reserved or software's (Intel SDM vol. 1, 10.5.1)."""

_REGISTERS: Final = frozenset({*(ROW.names or ()), "gs", "fs"})
"""Names in expressions that are no symbols."""

_NUMBER: Final = re.compile(r"\b(0x[0-9a-f]+|\d+)\b")

SymbolAddress = Callable[[str], int | None]
Note = Callable[[str], None]


class AreaWatcher:
    """Keeps a source's watched ranges up to date.

    profile: what is known of the kernel; where it says nothing of the layout, that is learnt from the guest's code.
    symbol: the address of a name.  note: told, in one line, what could not be watched.  code: the guest's code bytes,
    by default the source's memory.  still: holds the guest while its code is looked at, so that no save goes by
    unseen meanwhile.  wait: has each vCPU wait (True) at exits that resume no context as it was, or no longer
    (False); None where that is not ours to ask for. Each context's first run is such an exit, and shows its area
    before anything is saved there.  under: reads guest virtual memory (address, length) under any CR3; kernels with
    page tables of their own map their areas, and the way to them, in those alone, and are entered and left under the
    user's.
    """

    def __init__(
        self,
        profile: Profile | None,
        source: Source,
        symbol: SymbolAddress,
        note: Note,
        code: Read | None = None,
        still: Callable[[], AbstractContextManager[object]] = nullcontext,
        wait: Callable[[bool], None] | None = None,
        under: Callable[[int, int, int], bytes] | None = None,
    ) -> None:
        self.profile = profile
        self._still = still
        self._wait = wait
        self._under = under
        self._spaces: dict[int, tuple[int, int]] = {}
        """By CPU: the CR3 it was given last, and the one before."""
        self._closely = CLOSELY
        """Entries still to come of those that are watched closely."""
        self._wanted: dict[int, int] = {}
        self._source = source
        self._symbol = symbol
        self._note = note
        self._told: set[str] = set()
        self._areas: dict[int, int] = {}
        self._looks = 0
        self._next = 0.0
        self._few = _Few() if Capability.FEW_STORES in source.capabilities else None
        self._can_watch = Capability.STORES in source.capabilities or self._few is not None
        self._active = Capability.MEMORY in source.capabilities
        unknown = profile is None or profile.layout is None
        missing = _missing_name(profile, symbol) if profile is not None and self._active else None
        if profile is not None and missing is not None:
            said = f"profile {profile.name}: {missing} is not a symbol of this kernel"
            note(f"{said}: where its save areas are is learnt from its code")
            self.profile, unknown = None, True
        self.learner = Learner(code or source.read_memory) if unknown and self._active else None
        if self._wait is not None and self._active and self._can_watch and (self.learner or self._watchable):
            self._wait(True)
        else:
            self._wait = None

    def look(self, batch: Batch) -> Batch:
        """Look for areas as the last entries of `batch` show them; return the rows that tell what is new.

        They are numbered before the first row of `batch` and belong in front of it.
        """
        if not self._active:
            return batch[:0]
        rows = []
        self._note_spaces(batch)
        if self._few is not None:
            self._few.note(batch)
        if self.learner is not None and self.learner.ready(batch):
            rows += self._learn(self.learner, batch)
        if self._watchable:
            last = _last_entries(batch)
            with self._held(batch) if last and not self._looks else nullcontext():
                rows += [row for at in last if self._due() for row in self._find(at)]
            rows += [row for at in _waiting_exits(batch) for row in self._find(at)]
        self._end_waiting(batch)
        if self._few is not None and self._areas:
            self._watch_few(self._few)
        for row in rows:
            row["seq"] = int(batch["seq"][0]) - 1  # what the batch shows is judged with this knowledge
        return concat(rows) if rows else batch[:0]

    def _note_spaces(self, batch: Batch) -> None:
        if self._under is not None:
            for row in batch[(batch["kind"] == Kind.CR3) & (batch["mode"] == 64)][-MAX_SPACES:]:
                self._spaces[int(row["cpu"])] = int(row["value"]), int(row["cr3"])

    def _read(self, address: int, length: int, cpu: int) -> bytes:
        """Memory as vCPU `cpu` sees it, or saw it before it last loaded CR3; raises OSError or CtxwatchError."""
        try:
            return self._source.read_memory(address, length, cpu)
        except OSError:
            if self._under is not None:
                for cr3 in self._spaces.get(cpu, ()):
                    with suppress(OSError, CtxwatchError):
                        return self._under(address, length, cr3)
            raise

    def follow(self, wanted: Mapping[int, int]) -> None:
        """Watch these ranges (first byte of each, and the one behind it), too: the rules ask who writes there."""
        if len(wanted) <= len(self._wanted) or not self._can_watch:
            return
        self._wanted = dict(wanted)
        if self._few is None:
            self._set_watch()

    def _held(self, batch: Batch) -> AbstractContextManager[object]:
        """Hold the guest meanwhile, unless it waits by itself: in `batch`, or at the next context's first run."""
        return nullcontext() if self._wait is not None or _waits(batch) else self._still()

    def _end_waiting(self, batch: Batch) -> None:
        """Have the guest wait no longer once the beginning is over, or no area can be found."""
        if self._wait is None:
            return
        self._closely -= int((batch["kind"] == Kind.ENTRY).sum())
        hopeless = self.learner is not None and self.learner.tried and self.learner.learnt is None
        if hopeless or self._closely <= 0:
            self._wait(False)
            self._wait = None

    @property
    def _watchable(self) -> bool:
        """True unless nothing is known, or areas on the stack alone: those exist only while their handler runs."""
        area = self.profile.data.area if self.profile is not None else None
        return area is not None and not area.stack

    def _learn(self, learner: Learner, batch: Batch) -> list[Batch]:
        """Go on with what was learnt, if anything; the rows that tell its layout."""
        with self._held(batch):
            learnt = learner.learn()
        if learnt is None:
            return []
        tables = {"areas": self.profile.data.areas} if self.profile is not None else {}
        self.profile = Profile(learnt.profile().model_copy(update=tables))
        return _slot_rows(batch, learnt.slots, learnt.bits // 8)

    def _due(self) -> bool:
        self._looks += 1
        now = time.monotonic()
        if self._looks > EAGER and now < self._next:
            return False
        self._next = now + INTERVAL
        return len(self._areas) < MAX_AREAS

    def _find(self, row: Batch) -> list[Batch]:
        """New areas as the entry `row` (a batch of one) shows them, as rows."""
        profile = self._profile
        current = self._current(row)
        cpu = int(row["cpu"][0])
        found = [current] if current is not None and self._readable(current, cpu) else []
        found += [a for a in profile.areas(self.scope(row, 0), self._say_once) if self._readable(a, cpu)]
        return self._watch([a for a in dict.fromkeys(found) if a not in self._areas], row)

    def _current(self, row: Batch) -> int | None:
        """The interrupted context's area, by the GS base that the handler will have, failing that by the other."""
        profile, failed = self._profile, None
        user = bool(is_user(row)[0])
        if self._on_stack_top and not (user and _waits(row)):
            return None
        bases = [int(row[name][0]) for name in ("kernel_gs_base", "gs_base")]
        if row["flags"][0] & Flag.PARITY_KERNEL or not user:
            bases.reverse()
        for base in dict.fromkeys(bases):
            try:
                return profile.current_area(self.scope(row, base))
            except (OSError, UsageError) as error:
                failed = failed or error
        if failed is not None and not self._areas and self.learner is None:
            self._say(
                f"profile {profile.name}: [area] current = {profile.current!r}",
                f": {failed}: that context's area is not watched; correct the expression",
            )
        return None

    @property
    def _on_stack_top(self) -> bool:
        """True if the areas lie at the tops of the threads' stacks, below a pointer to there: such an area is that of
        a user context. What is interrupted in the kernel is saved further down, and the kernel's own threads use
        their stacks from the top. So it is looked for only while a vCPU waits on its way to user code: a moment later
        the pointer may be to a kernel thread's."""
        return 0 < self._profile.below_pointer >= self._size

    @property
    def _profile(self) -> Profile:
        assert self.profile is not None
        return self.profile

    def scope(self, row: Batch, gs_base: int = 0) -> Scope:
        """Where expressions are evaluated: the registers of `row` (a batch of one), the guest's names and memory.

        gs_base: the GS base to use in place of the row's; 0 keeps it.
        """
        return _scope_of(row, gs_base, self._symbol, self._read, self._profile.data.bits // 8)

    def _readable(self, start: int, cpu: int) -> bool:
        """True if the whole area is mapped; page 0 never holds one."""
        if start in self._areas:
            return True
        if start < 4096:
            return False
        size = self._size
        try:
            return len(self._read(start, size, cpu)) == size
        except (OSError, CtxwatchError) as error:
            self._say_once(f"profile {self._profile.name}: area at {start:#x} is not watched: {error}")
            return False

    @property
    def _size(self) -> int:
        layout = self._profile.layout
        return layout.size if layout is not None else 0

    def _watch(self, new: list[int], row: Batch) -> list[Batch]:
        if not new:
            return []
        self._areas |= dict.fromkeys(new, self._size)
        if self._can_watch and self._few is None:
            self._set_watch()
        return [_told(row, Kind.AREA, addr=start, value=self._areas[start]) for start in new]

    def _set_watch(self) -> None:
        spans = [span for start in sorted(self._areas) for span in self._spans(start)]
        wanted = [(start, end) for start, end in self._wanted.items() if self._area_at(start) is None]
        try:
            self._source.set_watch([*spans, *wanted])
        except NotCapable as error:
            self._say(str(error))

    def _watch_few(self, few: _Few) -> None:
        """Watch what a source may that stops the guest at each store: the slots that findings are about, and of each
        area the bytes at its end that no save writes, into which the stack above it overflows first."""
        wanted = [(start, end) for start, end in self._wanted.items() if self._area_at(start) is not None]
        area = self._profile.data.area
        unused = _size_behind_fxsave(self._size, area.simd if area is not None else None)
        word = self._profile.data.bits // 8
        ends = [start + self._size for start in self._areas]
        # A store that changes nothing, as of a recursion that is made again, is told of a single word only. So the last
        # one, which a stack reaches first, is watched by itself, and before the others.
        last = [(end - word, end) for end in ends if unused >= word]
        spans = [*wanted, *last, *((end - unused, end - word) for end in ends if unused > word)]
        if few.landed_in(self._areas, self._size):
            if wanted:
                self._say(_PUSHED_BY_CPU)
            spans = []
        if len(spans) > FEW:
            self._say(
                f"{len(self._areas)} save areas are known: of {len(spans)} places in them, the first {FEW} are watched",
                "; the probe watches all",
            )
        if spans[:FEW] == few.watched:
            return
        few.watched = spans[:FEW]
        try:
            self._source.set_watch(few.watched)
        except NotCapable as error:
            self._say(str(error))

    def _area_at(self, address: int) -> int | None:
        """The area in which `address` lies, or None."""
        return next((start for start, size in self._areas.items() if start <= address < start + size), None)

    def _spans(self, start: int) -> Iterator[tuple[int, int]]:
        """The watched ranges of the area at `start`: all of it but what FXSAVE writes at every save."""
        area = self._profile.data.area
        if area is None or area.simd is None:
            yield start, start + self._size
            return
        yield start, start + area.simd
        yield start + area.simd + FXSAVE_WRITES, start + self._size

    def _say_once(self, text: str) -> None:
        """Tell `text`, unless it was told before of another address."""
        key = _NUMBER.sub("#", text)
        if key not in self._told:
            self._told.add(key)
            self._note(text)

    def _say(self, text: str, detail: str = "") -> None:
        """Tell `text` and `detail`, unless `text` was told before."""
        if text not in self._told:
            self._told.add(text)
            self._note(text + detail)


_PUSHED_BY_CPU: Final = (
    "stores into the save areas are not watched: the CPU pushes its frames there, and QEMU ends where that hits a "
    "watchpoint; use the probe"
)


@dataclass(slots=True)
class _Few:
    """What a source may watch that stops the guest at each store. frames: where the CPU has pushed frames."""

    frames: set[int] = field(default_factory=set)
    watched: list[tuple[int, int]] = field(default_factory=list)

    def note(self, batch: Batch) -> None:
        """Take the frames of `batch`."""
        entries = (batch["kind"] == Kind.ENTRY) & (batch["frame"] != 0)
        self.frames.update(np.unique(batch["frame"][entries]).tolist())

    def landed_in(self, areas: Iterable[int], size: int) -> bool:
        """True if a frame was ever pushed into one of the areas of `size` bytes at `areas`, or it is not known."""
        if not 0 < len(self.frames) <= MAX_FRAMES:
            return True
        places = np.array(sorted(self.frames), np.uint64)
        starts = np.array(list(areas), np.uint64)
        first = np.searchsorted(places, starts - np.uint64(_FRAME))
        return bool((np.searchsorted(places, starts + np.uint64(size + _FRAME)) > first).any())


def _size_behind_fxsave(size: int, simd: int | None) -> int:
    """Bytes at the end of an area of `size` bytes that FXSAVE of its image at offset `simd` never writes."""
    return max(0, size - simd - FXSAVE_WRITES) if simd is not None else 0


def _scope_of(
    row: Batch, gs_base: int, symbol: SymbolAddress, read: Callable[[int, int, int], bytes], word: int
) -> Scope:
    """The scope of expressions at the event `row` (a batch of one); `read`: address, length and CPU to memory."""
    names = [name for name in row.dtype.names or () if row.dtype[name].shape == () and row.dtype[name].names is None]
    registers = {name: int(row[name][0]) for name in names if name not in ("kind", "how", "size", "mode")}
    if gs_base:
        registers["gs_base"] = gs_base
    cpu = int(row["cpu"][0])
    return Scope(registers, symbol, lambda at, n: read(at, n, cpu), word)


def _missing_name(profile: Profile, symbol: SymbolAddress) -> str | None:
    """A name that the profile needs to find areas, and that is neither a register nor a symbol of the kernel."""
    area, table = profile.data.area, profile.data.areas
    if area is not None and area.stack:
        return None
    texts = [
        area.current if area is not None else None,
        *((table.base, table.head, *table.addresses) if table is not None else ()),
    ]
    names = sorted(set().union(*(Expression(text).names() for text in texts if text)))
    return next((name for name in names if name not in _REGISTERS and symbol(name) is None), None)


def _last_entries(batch: Batch) -> list[Batch]:
    """The last entry from user code and the last from kernel code (an idle thread's, a handler's own)."""
    entries = batch["kind"] == Kind.ENTRY
    if not entries.any():
        return []
    user = is_user(batch)
    last = (np.flatnonzero(entries & wanted)[-1:] for wanted in (user, ~user))
    return [batch[int(index) : int(index) + 1] for found in last for index in found]


def _waiting_exits(batch: Batch) -> list[Batch]:
    """The exits at which a vCPU stands: what memory says of the context that is resumed holds until it is released."""
    waiting = (batch["kind"] == Kind.EXIT) & ((batch["flags"] & (Flag.WAITING | Flag.UNREADABLE)) == Flag.WAITING)
    return [batch[index : index + 1] for index in np.flatnonzero(waiting)]


def _waits(batch: Batch) -> bool:
    """True if a vCPU stands in one of these rows: the guest cannot be held beside that."""
    return bool((batch["flags"] & Flag.WAITING).any())


def _told(row: Batch, kind: int, **columns: int) -> Batch:
    """A row of our own, beside the event `row`."""
    made = np.zeros(1, row.dtype)
    made["kind"] = kind
    for name in ("seq", "time", "cpu", "mode"):
        made[name] = row[name][0]
    for name, value in columns.items():
        made[name] = value
    return made


def _slot_rows(batch: Batch, slots: dict[str, int], word: int) -> list[Batch]:
    """A layout as rows beside the last event of `batch`."""
    return [
        _told(batch[-1:], Kind.SLOT, addr=offset, size=word, value=SLOT_NAMES.index(name))
        for name, offset in slots.items()
    ]
