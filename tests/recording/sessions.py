"""Sessions for the recording tests: rows of a busy kernel with a few bugs, judged and recorded as a live run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gdbext.events.row import ROW_SIMD, Batch, Flag
from gdbext.recording.header import Header
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.recording.writer import Recorder
from gdbext.report.document import finding_document
from gdbext.rules.engine import Engine
from gdbext.rules.finding import Finding
from tests.rules.rows import KERNEL_RIP, How, Kind, batch, context, entry, exit_, stamp

BASE = 0xFFFFFFFF80200000
CODE = b"\x0f\x01\xf8\x50\x51\x52\x59\x5a\x58\x48\xcf" + b"\x90" * 4085
"""A page of guest code: swapgs, pushes, pops in another order, iretq."""


class FakeGuest:
    """Code in one page, names for a part of it."""

    def __init__(self) -> None:
        self.reads = 0
        self.code = CODE

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        page = KERNEL_RIP & ~0xFFF
        if not page <= address < page + 4096:
            raise OSError(f"{address:#x} is unmapped")
        return self.code[address - page : address - page + length]

    def symbol(self, address: int) -> str | None:
        if not KERNEL_RIP <= address < KERNEL_RIP + 0x1000:
            return None
        return f"kernel<b>\x1b[31m+{address - KERNEL_RIP:#x}"


def busy(rounds: int = 400, *, simd: bool = False, bugs: bool = True) -> Batch:
    """A stream of rows on two CPUs with swaps, system calls, nesting, and now and then a context resumed wrong."""
    rows: list[Batch] = []
    kernel = context(77, user=False, gs_base=BASE, kernel_gs_base=0x7000)
    for n in range(rounds):
        ctx = context(n % 9 + 1, rax=n, rip=0x400000 + n % 37)
        wrong = ctx | ({"rbx": 0xDEAD0000 + n} if n % 50 == 7 else {"rflags": 0x202} if n % 50 == 31 else {})
        after = wrong if bugs else ctx
        swaps = [_swap(KERNEL_RIP + 0x10), _swap(KERNEL_RIP + 0x880)]
        if n % 3 == 0:
            part = [entry(ctx, How.SYSCALL), swaps[0], swaps[1], exit_(ctx | {"rax": 0}, How.SYSRET)]
        elif n % 3 == 1:
            part = [entry(ctx), swaps[0], entry(kernel), exit_(kernel), swaps[1], exit_(after)]
        else:
            part = [entry(ctx, How.EXCEPTION), swaps[0], swaps[1], exit_(after)]
        for row in part:
            row["cpu"] = n % 2
            for name in ("gs_base", "kernel_gs_base"):
                row[name][row[name] == BASE] = BASE + n % 2 * 0x1000
        rows += part
    whole = stamp(batch(*rows))
    whole["time"] = 10**12 + np.cumsum(whole["seq"] % 7 * 900 + 100, dtype=np.uint64)
    if not simd:
        return whole
    wide = np.zeros(len(whole), ROW_SIMD)
    for name in whole.dtype.names or ():
        wide[name] = whole[name]
    wide["flags"] |= Flag.SIMD
    wide["simd"]["xmm"] = np.arange(32, dtype=np.uint64).reshape(16, 2)
    return wide


def _swap(pc: int) -> Batch:
    row = exit_(context(gs_base=0x7000, kernel_gs_base=BASE))
    row["kind"], row["how"], row["pc"], row["frame"] = Kind.SWAPGS, 0, pc, 0
    return row


def cuts(rows: Batch, size: int) -> list[Batch]:
    """The rows in batches of `size`."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def documents(findings: list[Finding]) -> list[dict[str, Any]]:
    """What the report says of the findings."""
    return [finding_document(finding) for finding in findings]


def header(**changes: Any) -> Header:
    """A header with everything in it."""
    qemu = {"version": "10.0.2", "accel": "tcg", "plugin_api": 4}
    fields: dict[str, Any] = {"guest": "fake", "source": "probe", "qemu": qemu, "started": 1.8e9}
    return Header(**fields | changes)


def record(
    path: Path, rows: Batch, *, size: int = 64, finish: bool = True, lost: int = 0, **changes: Any
) -> list[dict[str, Any]]:
    """Judge and record `rows` in batches of `size` as a live run does; return what was found."""
    about = header(**changes)
    notes: list[str] = []
    with Recorder(path, about, FakeGuest(), notes.append) as recorder:
        engine = Engine(about.policy, codes=about.codes, guest=recorder.guest)
        for part in cuts(rows, size):
            engine.feed(part)
            recorder.write(part)
        found = documents(engine.findings)
        if finish:
            assert recorder.close({"events": {"lost": lost}, "seconds": 2.5, "findings": found})
    assert notes == []
    return found


def replayed(path: Path) -> tuple[list[dict[str, Any]], str | None, int]:
    """What a replay finds, the recording's flaw, and the number of events."""
    with Recording(path) as recording:
        events = 0
        replay = Replay(recording)
        for part, _ in replay.steps():
            events += len(part)
        return documents(replay.engine.findings), recording.flaw, events
