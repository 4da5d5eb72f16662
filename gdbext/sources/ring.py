"""The ring file that the probe writes and we read: its layout, described once for both sides.

The file is a header with two tables of watched ranges and a window for guest memory, then one control block per vCPU,
then one ring of event rows per vCPU. The reader makes the
header and takes the reader's lock before QEMU starts; the probe adds the rest and takes the writer's lock. Both locks
are open-file-description locks on one byte each: the kernel drops them when their holder dies, however it dies, so a
dead peer is never guessed from a process id or a clock.

Each ring has one producer (its vCPU's thread) and one consumer. ``head`` counts rows published, ``tail`` rows taken,
both without end; row number n lies at n modulo the ring's size. While a reader is present a full ring makes the vCPU
wait; without one the oldest rows are overwritten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from gdbext.events.row import ROW_SIMD, TRACKED_SLOTS, Field, c_header

MAGIC: Final = int.from_bytes(b"CTXRING1", "little")
VERSION: Final = 5
PAGE: Final = 4096
DEFAULT_ROWS: Final = 16384
"""Rows in one vCPU's ring: some 7 MB, a tenth of a second of the busiest guest."""

READER_LOCK: Final = 0
WRITER_LOCK: Final = 1
"""Byte offsets of the two locks."""

WATCH_RANGES: Final = 1024
WATCH_GRANULE: Final = 256
WATCH_BITS: Final = 1 << 16
ERROR_BYTES: Final = 256


class State:
    """Header column ``state``: what the probe has done so far."""

    EMPTY = 0
    ATTACHED = 1
    ENDED = 2
    FAILED = 3


class Option:
    """Bits of header column ``options``: what the probe was loaded to do."""

    SIMD = 1 << 0
    WATCH = 1 << 1
    SELF = 1 << 2


class Log:
    """Header column ``log``: whether QEMU writes down for the probe what it delivers."""

    OFF = 0
    WANTED = 1
    ON = 2
    REFUSED = 3


LOGGED: Final = ("cpu_reset", "plugin")
"""What QEMU is to log from the beginning: triple faults for us, and what makes each thread's file for the probe."""

TICKET_SHIFT: Final = 2
TICKET_MASK: Final = (1 << TICKET_SHIFT) - 1
"""``waiting`` and ``release`` name the event in which a vCPU waits by the low bits of its number, shifted; below them
stand 1 and a :class:`Release`."""


def release_word(seq: int, verb: int) -> int:
    """The value of ``release`` that lets a vCPU go which waits in event `seq`."""
    return (seq << TICKET_SHIFT | verb) & 0xFFFF_FFFF


class Release:
    """Low bits of control column ``release``: what a waiting vCPU is to do."""

    NOT_YET = 0
    GO = 1
    HALT = 2  # go on as soon as QEMU's main thread waits for the vCPUs to pause


TRACKED_GS: Final = 1
"""Bit of ``tracked_flags``: the address is an offset from the CPU's kernel GS base."""

COUNTERS: Final = (
    "entries", "exits", "syscalls", "swapgs", "identical", "unmatched", "self", "stray", "heard", "flushes",
    "overwritten",
)  # fmt: skip
"""Per-vCPU counts. self: serialising irets that resume the next instruction. stray: executions of a handler's first
instruction that were no entry. heard: entries that QEMU's log alone told of. overwritten: rows that no reader took; one
more where the probe had no memory to keep track of something, or QEMU's log no room for more."""


def _u32(name: str, doc: str, length: int = 1) -> Field:
    return Field(name, "<u4", "uint32_t", length, doc)


def _u64(name: str, doc: str, length: int = 1) -> Field:
    return Field(name, "<u8", "uint64_t", length, doc)


HEADER_FIELDS: Final[tuple[Field, ...]] = (
    _u64("magic", "MAGIC"),
    _u32("version", "VERSION; of this file's layout"),
    _u32("schema", "SCHEMA_VERSION; of the row"),
    _u32("row_size", "bytes in a row, with the SIMD block where there is one; probe"),
    _u32("rows", "rows in each ring, a power of two; probe"),
    _u32("cpus", "rings in the file; probe"),
    _u32("options", "Option bits; probe"),
    _u32("state", "State; probe"),
    _u32("api", "plugin API that the probe was built for; probe"),
    _u32("writer", "QEMU's process id; probe"),
    _u32("reader", "the reader's process id"),
    _u32("present", "1 while a reader takes rows; the probe clears it when it finds the reader's lock free"),
    _u32("halt", "1: vCPUs wait at exits that are not identical; reader"),
    _u64("spare0", "zero", 1),
    Field("error", "S256", "char", ERROR_BYTES, "why the probe could not start, when state is FAILED"),
    _u64("seq", "number of the last event, over all CPUs; probe"),
    _u64("spare1", "keeps the busy counter above on a line of its own", 7),
    _u32("catch", "1: also wait at the exit that resumes catch_rip, catch_rsp in catch_space; reader"),
    _u32("tracked_count", "tracked variables in use; reader"),
    _u64("catch_rip", "reader"),
    _u64("catch_rsp", "reader"),
    _u64("catch_space", "CR3's address bits for user code, 0 for kernel code; reader"),
    _u64("tracked_addr", "guest virtual address, or offset from the kernel's GS base; reader", TRACKED_SLOTS),
    _u32("tracked_size", "bytes: 1, 2, 4 or 8; reader", TRACKED_SLOTS),
    _u32("tracked_flags", "TRACKED_GS", TRACKED_SLOTS),
    _u32("watch_active", "counts changes of the watch table; its lowest bit: which of the two is in force; reader"),
    _u32("watch_count", "ranges in each watch table; reader", 2),
    _u32("log", "a Log; probe and reader"),
)

WATCH_FIELDS: Final[tuple[Field, ...]] = (
    _u64("lo", "first guest virtual address of each range, ascending", WATCH_RANGES),
    _u64("hi", "first address behind it", WATCH_RANGES),
    Field(
        "bits", "u1", "uint8_t", WATCH_BITS // 8, "a bit for each granule, by hash, in which a watched store may begin"
    ),
)

MEMORY_FIELDS: Final[tuple[Field, ...]] = (
    _u32("asked", "number of the last request for guest memory, made only once the one before is answered; reader"),
    _u32("cpu", "the vCPU that is to answer, as it maps memory then; the last but `asked` to be written; reader"),
    _u64("address", "guest virtual address; reader"),
    _u32("length", "bytes, at most a page; reader"),
    _u32("answered", "number of the last request that was answered; probe"),
    _u32("found", "bytes in `data`: `length`, or 0 where it cannot be read; probe"),
    _u32("refused", "how often it could not be read so far; probe"),
    Field("data", "u1", "uint8_t", PAGE, "the memory; probe"),
)

CONTROL_FIELDS: Final[tuple[Field, ...]] = (
    _u64("head", "rows published; probe"),
    _u64("spare0", "producer and consumer do not share a line", 7),
    _u64("tail", "rows taken; reader"),
    _u64("spare1", "likewise", 7),
    _u32("waiting", "not 0 while the vCPU stands still in a row with Flag.WAITING, and in which; probe"),
    _u32("release", "a Release for the row it stands in; reader"),
    _u32("caught", "1: it waits at the exit that `catch` asked for; probe"),
    _u32("resets_asked", "how often it wrote to a port by which a PC is reset; probe"),
    *(_u64(name, "see COUNTERS") for name in COUNTERS),
    _u64("idt", "base of the interrupt table that the vCPU has loaded, guest virtual; reader"),
    _u64("gdt", "base of its global descriptor table, likewise"),
    _u32("idt_limit", "of that table; reader"),
    _u32("gdt_limit", "of that table; reader"),
    _u32("selectors", "of its TSS, and of its LDT 16 bits above; reader"),
    _u32("tables_told", "how often the five before were told, written last; reader"),
)


def _dtype(fields: Iterable[Field]) -> np.dtype[np.void]:
    return np.dtype(
        [(f.name, f.numpy, (f.length,)) if f.length > 1 and f.c != "char" else (f.name, f.numpy) for f in fields]
    )


HEADER: Final = _dtype(HEADER_FIELDS)
WATCH: Final = _dtype(WATCH_FIELDS)
MEMORY: Final = _dtype(MEMORY_FIELDS)
CONTROL: Final = _dtype(CONTROL_FIELDS)


def _pages(size: int) -> int:
    return (size + PAGE - 1) // PAGE * PAGE


WATCH_OFFSET: Final = PAGE
MEMORY_OFFSET: Final = WATCH_OFFSET + _pages(2 * WATCH.itemsize)
CONTROL_OFFSET: Final = MEMORY_OFFSET + _pages(MEMORY.itemsize)
HEADER_SIZE: Final = CONTROL_OFFSET
"""Bytes that the reader makes; the control blocks and rings behind them are the probe's."""


def rings_offset(cpus: int) -> int:
    """Where the first ring begins in a file of `cpus` rings."""
    return CONTROL_OFFSET + _pages(cpus * CONTROL.itemsize)


def file_size(cpus: int, rows: int, row_size: int) -> int:
    """Bytes in the whole file."""
    return rings_offset(cpus) + _pages(cpus * rows * row_size)


def watch_granules(lo: int, hi: int) -> list[int]:
    """The bits to set for a watched range: all granules in which a store that touches it can begin."""
    first, last = max(lo - 15, 0) // WATCH_GRANULE, (hi - 1) // WATCH_GRANULE
    if last - first >= WATCH_BITS:
        return list(range(WATCH_BITS))
    return [granule % WATCH_BITS for granule in range(first, last + 1)]


def c_layout() -> str:
    """Return the C text of the row and of the ring file, for the probe's build."""
    lines = [c_header(), "/* Generated from gdbext/sources/ring.py: do not edit. */"]
    constants = {
        "MAGIC": f"{MAGIC:#x}ull", "VERSION": VERSION, "PAGE": PAGE, "DEFAULT_ROWS": DEFAULT_ROWS,
        "READER_LOCK": READER_LOCK, "WRITER_LOCK": WRITER_LOCK, "WATCH_GRANULE": WATCH_GRANULE,
        "WATCH_BITS": WATCH_BITS, "WATCH_RANGES": WATCH_RANGES, "ERROR_BYTES": ERROR_BYTES,
        "WATCH_OFFSET": WATCH_OFFSET, "MEMORY_OFFSET": MEMORY_OFFSET, "CONTROL_OFFSET": CONTROL_OFFSET,
        "TRACKED_GS": TRACKED_GS, "TRACKED_SLOTS": TRACKED_SLOTS, "SIMD_ROW_SIZE": ROW_SIMD.itemsize,
        "TICKET_SHIFT": TICKET_SHIFT, "TICKET_MASK": f"{TICKET_MASK}u",
    }  # fmt: skip
    lines += [f"#define RING_{name} {value}" for name, value in constants.items()]
    for prefix, source in (("STATE", State), ("OPTION", Option), ("RELEASE", Release), ("LOG", Log)):
        lines += [f"#define RING_{prefix}_{n} {v}u" for n, v in vars(source).items() if n.isupper()]
    for name, fields, dtype in (
        ("ring_header", HEADER_FIELDS, HEADER),
        ("ring_watch", WATCH_FIELDS, WATCH),
        ("ring_memory", MEMORY_FIELDS, MEMORY),
        ("ring_control", CONTROL_FIELDS, CONTROL),
    ):
        lines += ["", f"typedef struct {name} {{"]
        lines += [f"    {f.c} {f.name}{f'[{f.length}]' if f.length > 1 else ''};" for f in fields]
        lines += [f"}} {name};", f'_Static_assert(sizeof({name}) == {dtype.itemsize}, "{name} size");']
    return "\n".join([*lines, ""])
