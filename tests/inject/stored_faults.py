"""Faults in memory: a word of a suspended context is changed where the kernel keeps it, found by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.events.row import Batch, Flag
from gdbext.ledger.compare import is_call, is_user
from tests.inject.patch import Change, NotHere, TooLate
from tests.inject.scene import Expect, Injection, Scene

_AROUND: Final = 192
"""Bytes on either side of a saved RIP within which the rest of the context is."""
_TELLING: Final = 1 << 16
"""A register's value above this is no coincidence."""
_ENOUGH: Final = 6
"""Telling values that must lie there."""
_CONTEXTS: Final = 40
_LOOKS: Final = 8
"""How often memory is searched, and """
_EVENTS_APART: Final = 400
"""events between."""
_COPIES: Final = 16
"""Threads that may have the same XMM registers: a fork's children do."""
_DISTINCT: Final = 12
"""Different bytes among a thread's XMM registers that make them telling."""
_XMM: Final = 6
"""The XMM register that is changed."""


def change_stored(field: str, value: Callable[[int], int], codes: tuple[str, ...], scene: Scene) -> Injection:
    """Change `field` of a context of user code that an interrupt suspended."""
    for ram in _looks(scene):
        for context in _suspended(scene):
            at = _find(scene, ram, context, field)
            if at is None:
                continue
            old = int.from_bytes(ram[at : at + scene.word], "little")
            new = value(old) & ((1 << 8 * scene.word) - 1)
            scene.stub.write_physical(at, new.to_bytes(scene.word, "little"))
            where = f"{field} of the context interrupted at event {int(context['seq'][0])}"
            change = Change(at, "guest physical memory", (f"{where} = {old:#x}",), (f"{new:#x}",))
            return Injection(change, Expect(codes, frozenset({field})))
    raise TooLate("no suspended context was found in memory")


def _looks(scene: Scene) -> Iterator[bytes]:
    """The guest's RAM, now and at some later times: what is looked for need not be there at once."""
    for _ in range(_LOOKS):
        yield scene.live.physical()
        before = scene.live.last_seq
        scene.live.go()
        scene.live.watch(lambda: scene.live.last_seq > before + _EVENTS_APART, 2.0)  # noqa: B023 - called at once
        scene.live.hold()


def _find(scene: Scene, ram: bytes, context: Batch, field: str) -> int | None:
    """The physical address of `field` of `context` where the kernel keeps it."""
    for rip in _occurrences(ram, _word(scene, context, "rip"), scene.word):
        at = _slot(scene, ram, context, rip, field)
        if at is not None:
            return at
    return None


def _suspended(scene: Scene) -> Iterator[Batch]:
    """Contexts of user code that wait, with telling registers, the longest waiting first: not the running one."""
    pending = scene.live.engine.pending()
    fit = is_user(pending) & ~is_call(pending) & ((pending["flags"] & Flag.UNREADABLE) == 0)
    fit &= pending["vector"] >= 32
    rows = pending[fit][-_CONTEXTS:]
    for index in range(len(rows)):
        row = rows[index : index + 1]
        if len({int(row[name][0]) for name in GPR64 if row[name][0] > _TELLING}) >= _ENOUGH:
            yield row


def _word(scene: Scene, context: Batch, name: str) -> bytes:
    return (int(context[name][0]) & ((1 << 8 * scene.word) - 1)).to_bytes(scene.word, "little")


def _occurrences(ram: bytes, word: bytes, step: int) -> Iterator[int]:
    at = ram.find(word)
    while at >= 0:
        if at % step == 0:
            yield at
        at = ram.find(word, at + 1)


def _slot(scene: Scene, ram: bytes, context: Batch, rip: int, field: str) -> int | None:
    """The physical address of `field` if a saved context lies around the word at `rip`, and the field is told."""
    start = max(rip - _AROUND, 0)
    window = ram[start : rip + _AROUND]
    words = {window[at : at + scene.word] for at in range(rip % scene.word, len(window), scene.word)}
    names = [name for name in GPR64 if context[name][0] > _TELLING]
    if not all(_word(scene, context, name) in words for name in (*names, "rsp", "rflags")):
        return None
    found = [start + at for at in _occurrences(window, _word(scene, context, field), scene.word)]
    near = [at for at in found if abs(at - rip) <= _AROUND]
    return min(near, key=lambda at: abs(at - rip)) if near else None


def change_xmm(scene: Scene) -> Injection:
    """Change one XMM register of suspended threads where FXSAVE or XSAVE has put all of them.

    Under a workload without signals: what a handler's return brings back is the thread's own affair.
    """
    count = 16 if scene.word == 8 else 8
    for ram in _looks(scene):
        changed: dict[int, int] = {}
        for row in _with_simd(scene):
            block = b"".join(row["simd"]["xmm"][0][number].tobytes() for number in range(count))
            places = [at + 16 * _XMM for at in _occurrences(ram, block, 16)] if len(set(block)) > _DISTINCT else []
            changed |= {at: ram[at] for at in places if len(places) <= _COPIES}
        for at, old in changed.items():
            scene.stub.write_physical(at, bytes([old ^ 0xFF]))
        if changed:
            at, old = next(iter(changed.items()))
            where = f"byte 0 of xmm{_XMM} in {len(changed)} places, the first"
            change = Change(at, "guest physical memory", (f"{where} = {old:#x}",), (f"{old ^ 0xFF:#x}",))
            return Injection(change, Expect(("CW105",), frozenset({f"xmm{_XMM}"})))
    raise NotHere("no XMM registers of a suspended thread were found in memory")


def _with_simd(scene: Scene) -> Iterator[Batch]:
    pending = scene.live.engine.pending()
    if "simd" not in (pending.dtype.names or ()):
        raise NotHere("SIMD state is not captured")
    fit = is_user(pending) & ((pending["flags"] & Flag.SIMD) != 0) & ~is_call(pending) & (pending["vector"] >= 32)
    for index in np.flatnonzero(fit)[-_CONTEXTS:].tolist():
        yield pending[index : index + 1]
