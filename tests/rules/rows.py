"""Rows for tests: a thread's context, the entry that interrupts it and the exit that resumes it."""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np

from gdbext.arch.registers import GPR64
from gdbext.events.row import ROW, Batch, Flag, How, Kind

KERNEL_RIP = 0xFFFFFFFF80001000
KERNEL_BASE = 0xFFFFFFFF80200000
_seq = count(1)


def _row(kind: int, how: int, fields: dict[str, Any]) -> Batch:
    row = np.zeros(1, ROW)
    row["seq"], row["kind"], row["how"], row["mode"] = next(_seq), kind, how, 64
    for name, value in fields.items():
        row[name] = value
    frame = [row[name][0] for name in ("rip", "cs", "rflags", "rsp", "ss")]
    if how in (How.INTERRUPT, How.EXCEPTION, How.NMI, How.SOFT, How.IRET) and "stack" not in fields:
        row["stack"][0][:5] = frame
    return row


def context(seed: int = 1, *, user: bool = True, **changes: Any) -> dict[str, Any]:
    """A context with every register different."""
    base = {name: seed * 0x1000 + index for index, name in enumerate(GPR64)}
    base |= {"rip": 0x400000 + seed * 0x100, "rsp": 0x7F0000 + seed * 0x1000, "rflags": 0x246}
    base |= {"cs": 0x33, "ss": 0x2B, "cr3": 0x100000 * seed, "fs_base": 0x10000 * seed, "gs_base": 0x7000}
    base |= {"kernel_gs_base": KERNEL_BASE}
    if not user:
        base |= {"gs_base": KERNEL_BASE, "kernel_gs_base": 0x7000}
        base |= {"cs": 0x10, "ss": 0x18, "rip": KERNEL_RIP + seed, "rsp": 0xFFFFFFFF80100000 + seed * 0x4000}
    return base | changes


def entry(ctx: dict[str, Any], how: int = How.INTERRUPT, **changes: Any) -> Batch:
    """The entry that interrupts `ctx`."""
    vector = {
        How.INTERRUPT: 32,
        How.EXCEPTION: 14,
        How.SYSCALL: 0x100,
        How.SOFT: 0x80,
        How.NMI: 2,
        How.SYSENTER: 0x101,
    }[how]
    fields = ctx | {"vector": vector, "pc": KERNEL_RIP + 0x500 + vector, "frame": 0xFFFFFFFF80300000}
    if how == How.SYSCALL:
        fields |= {"rcx": ctx["rip"], "r11": ctx["rflags"], "cs": 0, "ss": 0, "frame": 0}
    return _row(Kind.ENTRY, how, fields | changes)


def exit_(ctx: dict[str, Any], how: int = How.IRET, **changes: Any) -> Batch:
    """The exit that resumes `ctx`."""
    fields = ctx | {"pc": KERNEL_RIP + 0x900, "frame": 0xFFFFFFFF80300000}
    if how == How.SYSRET:
        fields |= {"rcx": ctx["rip"], "r11": ctx["rflags"], "frame": 0}
    return _row(Kind.EXIT, how, fields | changes)


def batch(*rows: Batch) -> Batch:
    """One batch of single rows."""
    return np.concatenate(rows)


def stamp(rows: Batch) -> Batch:
    """Number the rows from 1 in the order they stand (a row may have been used twice)."""
    rows["seq"] = np.arange(1, len(rows) + 1)
    return rows


__all__ = ["KERNEL_BASE", "KERNEL_RIP", "Flag", "How", "Kind", "batch", "context", "entry", "exit_", "stamp"]
