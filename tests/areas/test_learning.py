"""Areas found and learnt while a guest runs: what the rules then know, with a source made of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gdbext.arch.descriptors import Gate
from gdbext.code.paths import Entry, explore
from gdbext.errors import NotCapable
from gdbext.events.row import ROW, SLOT_NAMES, Batch, Flag, Kind, concat
from gdbext.profiles.profile import Profile, find
from gdbext.profiles.schema import parse
from gdbext.rules.engine import Engine
from gdbext.sources.areas import CLOSELY, FEW, FXSAVE_WRITES, AreaWatcher
from gdbext.sources.base import Capability
from gdbext.sources.learning import sample
from tests.code.conftest import Assemble, Snippet
from tests.code.test_code_nrk import COPY_WORD, NRK_RESTORE, NRK_SAVE
from tests.rules.rows import KERNEL_BASE, How, batch, context, entry, exit_, stamp

AREA = 0xFFFFFFFF80500000
WHOLE = "".join(COPY_WORD.format(word=w, slot=s) for w, s in ((4, 17), (6, 18), (3, 20)))

SAVES_ALL = NRK_SAVE.format(more=WHOLE) + NRK_RESTORE.format(cs=20).replace("restore:", "", 1)


def nowhere(_name: str) -> int | None:
    """Where a symbol is, of a kernel that has none."""
    return None


class Memory:
    """A source of nothing but memory: `words` at their addresses, and any number of zeroed areas."""

    name = "memory"
    capabilities = Capability.MEMORY | Capability.STORES
    lost = 0

    def __init__(self, words: dict[int, int], mapped: Sequence[range] = ()) -> None:
        self.words, self.mapped = words, mapped
        self.watched: list[tuple[int, int]] = []

    def read(self, timeout: float) -> Batch | None:
        return None

    def release(self, cpu: int, halt: bool) -> None:
        raise NotCapable("releasing")

    def read_memory(self, address: int, length: int, cpu: int = 0) -> bytes:
        if address in self.words:
            return self.words[address].to_bytes(length, "little")
        if any(address in area and address + length <= area.stop for area in self.mapped):
            return bytes(length)
        raise OSError(f"{address:#x} is unmapped")

    def set_watch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.watched = list(ranges)

    def close(self) -> None:
        pass


def watcher(profile: Profile | None, source: Memory, code: object = None) -> tuple[AreaWatcher, list[str]]:
    notes: list[str] = []
    return AreaWatcher(profile, source, {"table": AREA}.get, notes.append, code), notes  # type: ignore[arg-type]


def test_current_area_is_found_by_the_kernels_gs_base() -> None:
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])
    found, notes = watcher(find("nrk"), source)
    user, kernel = entry(context()), entry(context(user=False))
    (row,) = found.look(batch(user))
    assert (row["kind"], row["addr"], row["value"]) == (Kind.AREA, AREA, 704)
    assert source.watched == [(AREA, AREA + 192), (AREA + 192 + FXSAVE_WRITES, AREA + 704)]
    assert len(found.look(batch(kernel))) == 0
    assert notes == []


def test_an_area_on_top_of_a_stack_is_a_user_contexts() -> None:
    """A thread of the kernel has that stack for itself: what it pushes there overwrites no save."""
    text = "name = 'top'\ntitle = 'on the stack'\n[area]\nsize = 64\ncurrent = '[gs:8] - {}'\n[area.slots]\nrip = 0\n"
    source = Memory({KERNEL_BASE + 8: AREA + 64}, [range(AREA, AREA + 704)])
    inside, outside = context(user=False), context()
    for distance, first in ((64, []), (32, [AREA + 32])):
        found, notes = watcher(Profile(parse(text.format(distance), "top.toml")), source)
        assert found.look(batch(entry(inside)))["addr"].tolist() == first
        for row in (exit_(inside, flags=Flag.WAITING), entry(outside)):
            assert len(found.look(batch(row))) == 0
        last = found.look(batch(exit_(outside, flags=Flag.WAITING)))
        assert last["addr"].tolist() == ([] if first else [AREA])
        assert notes == []


def test_rows_come_before_what_they_explain() -> None:
    found, _ = watcher(find("nrk"), Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)]))
    rows = stamp(batch(entry(context()), exit_(context())))
    rows["seq"] += 10
    assert found.look(rows)["seq"].tolist() == [10]


def test_what_cannot_be_watched_is_told_once() -> None:
    found, notes = watcher(find("nrk"), Memory({}))
    for _ in range(3):
        assert len(found.look(batch(entry(context())))) == 0
    assert len(notes) == 1
    assert "[area] current = '[gs:8]'" in notes[0]
    assert "not watched" in notes[0]


def test_an_area_outside_memory_costs_that_area_alone() -> None:
    text = (
        "name = 'two'\ntitle = 'two areas'\n[area]\nsize = 16\n[area.slots]\nrip = 0\n"
        "[areas]\nkind = 'array'\nbase = 'table'\ncount = 3\nstride = 4096\n"
    )
    found, notes = watcher(Profile(parse(text, "two.toml")), Memory({}, [range(AREA, AREA + 16)]))
    assert found.look(batch(entry(context())))["addr"].tolist() == [AREA]
    assert len(notes) == 1
    assert f"area at {AREA + 4096:#x} is not watched" in notes[0]


def test_areas_on_the_stack_are_not_watched() -> None:
    source = Memory({}, [range(1 << 64)])
    found, _ = watcher(find("linux-amd64"), source)
    assert len(found.look(batch(entry(context())))) == 0
    assert source.watched == []


def test_layout_is_learnt_from_the_first_entry(assemble: Assemble) -> None:
    snippet = assemble(SAVES_ALL)
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])
    found, notes = watcher(None, source, snippet.read)
    rows = found.look(batch(entry(context(), pc=snippet["entry"])))
    slots = rows[rows["kind"] == Kind.SLOT]
    learnt = {SLOT_NAMES[int(row["value"])]: int(row["addr"]) for row in slots}
    assert learnt == find("nrk").layout.slots  # type: ignore[union-attr]
    assert rows["addr"][rows["kind"] == Kind.AREA].tolist() == [AREA]
    assert notes == []


def slot(name: str, offset: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["addr"], row["value"], row["size"] = Kind.SLOT, offset, SLOT_NAMES.index(name), 8
    return row


def area_row() -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["addr"], row["value"] = Kind.AREA, AREA, 704
    return row


def store(offset: int, value: int) -> Batch:
    row = np.zeros(1, ROW)
    row["kind"], row["mode"], row["addr"], row["value"], row["size"] = Kind.STORE, 64, AREA + offset, value, 8
    row["pc"], row["rsp"] = 0xFFFFFFFF80001000 + offset, 0xFFFFFFFF80600000
    return row


def test_learnt_slots_name_a_writer_even_if_the_first_finding_came_too_early() -> None:
    layout = find("nrk").layout
    assert layout is not None
    before, now = context(rflags=0x202), context(rip=0x400180, rflags=0x246)

    def save(ctx: dict[str, int], skip: str = "") -> list[Batch]:
        return [store(at, ctx[name]) for name, at in layout.slots.items() if name in ctx and name != skip]

    slots = [slot(name, at) for name, at in layout.slots.items()]
    wrong = now | {"rflags": 0x202}
    early = [entry(now), exit_(wrong)]
    call = [entry(before, How.SYSCALL), *save(before), exit_(before, How.SYSRET)]
    late = [entry(now), *save(now, "rflags"), exit_(wrong)]
    engine = Engine()
    engine.feed(stamp(concat([*early, *slots, area_row(), *call, *late])))
    flags = next(finding for finding in engine.findings if finding.code == "CW102")
    assert flags.count == 2
    assert flags.slot == "slot 17"
    assert flags.writer is not None
    assert "last written by the system call path" in flags.cause


class Kernel:
    """A guest of one snippet's code, and no names."""

    def __init__(self, snippet: Snippet) -> None:
        self.read = snippet.read

    def symbol(self, address: int) -> str | None:
        return None


@pytest.mark.parametrize("first", [True, False], ids=["before the save", "after it"])
def test_a_frame_overwritten_before_it_is_copied_and_a_slot_overwritten_then(assemble: Assemble, first: bool) -> None:
    snippet = assemble(SAVES_ALL)
    (leaving,) = explore(snippet.code, [Entry(snippet["entry"])]).exits
    layout = find("nrk").layout
    assert layout is not None
    now = context()
    wrong = now | {"rsp": 0x10}
    saved = wrong if first else now
    slots = [slot(name, at) for name, at in layout.slots.items()]
    save = [store(at, saved[name]) for name, at in layout.slots.items() if name in now]
    later = [] if first else [store(layout.slots["rsp"], 0x10)]
    engine = Engine(guest=Kernel(snippet))
    rows = [*slots, area_row(), entry(now, pc=snippet["entry"]), *save, *later, exit_(wrong, pc=leaving.address)]
    engine.feed(stamp(concat(rows)))
    finding = engine.findings[0]
    assert (finding.code, finding.field) == ("CW302" if first else "CW101", "rsp")
    assert finding.slot == "slot 7"
    assert "written on this save" in finding.cause or first


@pytest.fixture
def forgetful(assemble: Assemble) -> Snippet:
    """The nrk text's paths, whole but for RFLAGS, which are never stored."""
    without = NRK_SAVE.format(more=WHOLE.replace(COPY_WORD.format(word=4, slot=17), ""))
    return assemble(without + NRK_RESTORE.format(cs=20).replace("restore:", "", 1))


def test_where_no_stores_are_seen_the_slot_is_named_and_how_its_writer_is_found(forgetful: Snippet) -> None:
    """As through GDB's breakpoints: what the code shows is told, and what it cannot show is said to be unknown."""
    (leaving,) = explore(forgetful.code, [Entry(forgetful["entry"])]).exits
    now = context(rflags=0x246)
    engine = Engine(guest=Kernel(forgetful))
    engine.feed(stamp(batch(entry(now, pc=forgetful["entry"]), exit_(now | {"rflags": 0x202}, pc=leaving.address))))
    (finding,) = engine.findings
    assert (finding.code, finding.slot, finding.writer) == ("CW102", "slot 17", None)
    assert "never stores RFLAGS" in finding.cause
    assert finding.cause.endswith("Who wrote it last was not seen")
    assert "through the probe" in finding.look_at


def test_what_is_said_of_lost_flags_ends_in_who_wrote_the_slot_last(forgetful: Snippet) -> None:
    (leaving,) = explore(forgetful.code, [Entry(forgetful["entry"])]).exits
    layout = find("nrk").layout
    assert layout is not None
    before, now = context(rflags=0x202), context(rip=0x400180, rflags=0x246)
    saved = [store(at, before[name]) for name, at in layout.slots.items() if name in before]
    save = [store(at, now[name]) for name, at in layout.slots.items() if name in now and name != "rflags"]
    rows = [*(slot(name, at) for name, at in layout.slots.items()), area_row()]
    rows += [entry(before, How.SYSCALL), *saved, exit_(before, How.SYSRET)]
    rows += [entry(now, pc=forgetful["entry"]), *save, exit_(now | {"rflags": 0x202}, pc=leaving.address)]
    engine = Engine(guest=Kernel(forgetful))
    engine.feed(stamp(concat(rows)))
    flags = next(finding for finding in engine.findings if finding.code == "CW102")
    assert "Slot 17 was last written by the system call path at " in flags.cause
    assert flags.cause.endswith(", one interrupt ago; the interrupt path never stores it")
    assert "not seen" not in flags.cause


def test_five_words_of_a_three_word_frame() -> None:
    ctx = context(user=False, cs=8, ss=0x10, mode=32)
    words = [ctx["rip"], 8, ctx["rflags"], 0xC0103207, 0x1234, 0, 0, 0]
    came = entry(ctx, stack=[words], flags=Flag.NO_STACK)
    engine = Engine()
    engine.feed(stamp(batch(came, exit_(ctx | {"rsp": 0xC0103207}))))
    found = {finding.code: finding for finding in engine.findings}
    assert found["CW403"].slot == "slot esp"
    assert "the word above the frame" in found["CW403"].cause


def test_gates_worth_a_look() -> None:
    gates = [Gate(v, 0x1000 + v, 8, 1 if v in (2, 8) else 0, 3 if v in (3, 128) else 0) for v in range(256)]
    assert [gate.vector for gate in sample(gates)] == [0, 14, 32, 128]


def test_first_runs_are_waited_for_in_the_beginning() -> None:
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 2 * 704)])
    waits: list[bool] = []
    found = AreaWatcher(find("nrk"), source, nowhere, lambda _: None, wait=waits.append)
    assert waits == [True]
    assert found.look(batch(entry(context())))["addr"].tolist() == [AREA]
    source.words[KERNEL_BASE + 8] = AREA + 704
    first_run = exit_(context(2), flags=Flag.WAITING)
    assert found.look(batch(first_run))["addr"].tolist() == [AREA + 704]
    found.look(batch(*(entry(context()) for _ in range(CLOSELY))))
    assert waits == [True, False]
    found.look(batch(entry(context())))
    assert waits == [True, False]


def test_nothing_is_waited_for_where_no_area_can_be_found() -> None:
    waits: list[bool] = []
    AreaWatcher(find("linux-amd64"), Memory({}), nowhere, lambda _: None, wait=waits.append)
    assert waits == []
    found = AreaWatcher(None, Memory({}), nowhere, lambda _: None, lambda _, n: bytes(n), wait=waits.append)
    found.look(batch(entry(context())))
    assert waits[0]
    assert not waits[-1]


def test_what_the_rules_want_to_see_is_watched_too() -> None:
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])
    found, _ = watcher(find("nrk"), source)
    found.look(batch(entry(context())))
    found.follow({0x8000: 0x8028})
    assert (0x8000, 0x8028) in source.watched
    assert source.watched[0][0] == AREA


def test_a_stripped_kernel_s_areas_are_learnt(assemble: Assemble) -> None:
    snippet = assemble(SAVES_ALL)
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])
    found, notes = watcher(find("sel4-ia32"), source, snippet.read)
    (note,) = notes
    assert "profile sel4-ia32: ksCurThread is not a symbol of this kernel" in note
    rows = found.look(batch(entry(context(), pc=snippet["entry"])))
    assert rows["addr"][rows["kind"] == Kind.AREA].tolist() == [AREA]
    assert len(notes) == 1


def test_a_layout_is_learnt_where_no_stores_are_seen(assemble: Assemble) -> None:
    """As through GDB's breakpoints: an entry whose frame is shifted in its area is known by the layout alone."""
    snippet = assemble(SAVES_ALL)
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704)])
    source.capabilities = Capability.MEMORY
    found, notes = watcher(None, source, snippet.read)
    rows = found.look(batch(entry(context(), pc=snippet["entry"])))
    assert rows["addr"][rows["kind"] == Kind.AREA].tolist() == [AREA]
    assert np.count_nonzero(rows["kind"] == Kind.SLOT) > 16
    assert (source.watched, notes) == ([], [])


def test_a_list_that_ends_elsewhere_each_time_is_told_once() -> None:
    text = (
        "name = 'two'\ntitle = 'a list'\n[area]\nsize = 16\n[area.slots]\nrip = 0\n"
        "[areas]\nkind = 'list'\nhead = '[rdi]'\nnext = 8\n"
    )
    found, notes = watcher(Profile(parse(text, "two.toml")), Memory({}, [range(AREA, AREA + 16)]))
    for seed in (1, 2, 3):
        found.look(batch(entry(context(seed))))
    assert len(notes) == 1
    assert "profile two: [areas] list" in notes[0]


def test_areas_that_a_profile_names_have_the_layout_that_is_learnt(assemble: Assemble) -> None:
    snippet = assemble(SAVES_ALL)
    text = "name = 'idle'\ntitle = 'one area by name'\n[areas]\nkind = 'fixed'\naddresses = ['table + 0x1000']\n"
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 704), range(AREA + 0x1000, AREA + 0x2000)])
    found, notes = watcher(Profile(parse(text, "idle.toml")), source, snippet.read)
    rows = found.look(batch(entry(context(), pc=snippet["entry"])))
    assert rows["addr"][rows["kind"] == Kind.AREA].tolist() == [AREA, AREA + 0x1000]
    assert notes == []


FRAME = 0xFFFFFFFF80300000
"""Where the frames of the rows land."""


def few(profile: str, at: int) -> tuple[AreaWatcher, Memory, list[str]]:
    """A source that stops the guest at each store, whose guest has one area, at `at`."""
    source = Memory({KERNEL_BASE + 8: at}, [range(at, at + 704)])
    source.capabilities = Capability.MEMORY | Capability.FEW_STORES
    found, notes = watcher(find(profile), source)
    return found, source, notes


def test_where_each_store_stops_the_guest_only_what_no_save_writes_is_watched() -> None:
    found, source, notes = few("nrk", AREA)
    found.look(batch(entry(context())))
    assert source.watched == [(AREA + 696, AREA + 704), (AREA + 192 + FXSAVE_WRITES, AREA + 696)]
    found.follow({AREA + 128: AREA + 136, AREA + 136: AREA + 144, FRAME: FRAME + 8})
    found.look(batch(entry(context())))
    assert source.watched[:2] == [(AREA + 128, AREA + 136), (AREA + 136, AREA + 144)]
    assert len(source.watched) == 4  # the frame is not: the CPU pushes there
    assert notes == []


@pytest.mark.parametrize("at", [FRAME - 160, FRAME - 704, FRAME], ids=["inside", "on top", "at its beginning"])
def test_nothing_is_watched_where_the_cpu_pushes_frames(at: int) -> None:
    """QEMU ends where that hits a watchpoint."""
    found, source, notes = few("nrk", at)
    found.look(batch(entry(context())))
    found.follow({at + 128: at + 136})
    found.look(batch(entry(context())))
    assert source.watched == []
    (note,) = notes
    assert "the CPU pushes its frames there" in note


def test_watching_ends_with_the_first_frame_in_an_area() -> None:
    found, source, _ = few("nrk", AREA)
    found.look(batch(entry(context())))
    assert source.watched
    found.look(batch(entry(context(), frame=AREA + 640)))
    assert source.watched == []


def test_a_word_says_how_many_areas_are_not_watched() -> None:
    text = "name = 'many'\ntitle = 'many'\nextends = 'nrk'\n[areas]\nkind = 'array'\nbase = 'table'\ncount = 30\n"
    source = Memory({KERNEL_BASE + 8: AREA}, [range(AREA, AREA + 30 * 704)])
    source.capabilities = Capability.MEMORY | Capability.FEW_STORES
    found, notes = watcher(Profile(parse(text + "stride = 704\n", "many.toml")), source)
    for _ in range(3):
        found.look(batch(entry(context())))
    assert len(source.watched) == FEW
    (note,) = notes
    assert note.startswith("30 save areas are known")


def test_the_save_whose_rip_was_seen_tells_the_area_where_few_slots_are_watched(forgetful: Snippet) -> None:
    """As through GDB's breakpoints: the first finding asks for the slot, and it is told who wrote it last."""
    (leaving,) = explore(forgetful.code, [Entry(forgetful["entry"])]).exits
    layout = find("nrk").layout
    assert layout is not None
    engine = Engine(find("nrk").policy(), guest=Kernel(forgetful))
    before, now = context(rflags=0x202), context(rip=0x400180, rflags=0x246)
    lost = entry(now, pc=forgetful["entry"]), exit_(now | {"rflags": 0x202}, pc=leaving.address)
    engine.feed(stamp(concat([area_row(), *lost])))
    at = {name: AREA + layout.slots[name] for name in ("rip", "rflags")}
    assert engine.wanted == {start: start + 8 for start in at.values()}
    asked = [area_row(), entry(before, How.SYSCALL)]
    asked += [store(layout.slots[name], before[name]) for name in ("rip", "rflags")]
    asked += [exit_(before, How.SYSRET), lost[0], store(layout.slots["rip"], now["rip"]), lost[1]]
    rows = stamp(concat(asked))
    rows["seq"] += 3
    engine.feed(rows)
    (flags,) = (finding for finding in engine.findings if finding.code == "CW102")
    assert flags.writer is not None
    assert flags.writer.rip == 0xFFFFFFFF80001000 + layout.slots["rflags"]
    assert flags.cause.endswith(", one interrupt ago; the interrupt path never stores it")
    assert "not seen" not in flags.cause
