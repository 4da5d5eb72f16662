"""Descriptors: gates (Intel SDM vol. 3A, figures 6-2 and 6-8), segments (figure 3-8), and what STAR makes of SYSRET's
selectors (vol. 2, SYSRET)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gate:
    """One present gate. ``offset``: guest virtual address of the handler; ``ist``: 0 or 1–7; ``dpl``: 0–3."""

    vector: int
    offset: int
    selector: int
    ist: int
    dpl: int


def decode_idt(table: bytes, bits: int) -> list[Gate]:
    """Return the present interrupt and trap gates in the raw IDT bytes (16 bytes a gate in 64-bit mode, else 8)."""
    size = 16 if bits == 64 else 8
    gates = []
    for vector in range(min(len(table) // size, 256)):
        raw = table[vector * size : (vector + 1) * size]
        kind = raw[5] & 0x1F
        if not raw[5] & 0x80 or kind not in (0xE, 0xF):
            continue
        offset = int.from_bytes(raw[0:2], "little") | int.from_bytes(raw[6:8], "little") << 16
        if bits == 64:
            offset |= int.from_bytes(raw[8:12], "little") << 32
        gates.append(
            Gate(
                vector=vector,
                offset=offset,
                selector=int.from_bytes(raw[2:4], "little"),
                ist=raw[4] & 7 if bits == 64 else 0,
                dpl=raw[5] >> 5 & 3,
            )
        )
    return gates


def segment_base(descriptor: bytes) -> int:
    """The linear address at which the segment of a code or data `descriptor` (its 8 bytes) begins."""
    return int.from_bytes(descriptor[2:5], "little") | descriptor[7] << 24


def sysret_selectors(star: int, to_64_bit: bool) -> tuple[int, int]:
    """(CS, SS) that ``sysret`` loads from STAR[63:48]: RPL of CS is forced to 3, SS is taken as it is."""
    base = star >> 48
    return (base + 16 if to_64_bit else base) & 0xFFFF | 3, (base + 8) & 0xFFFF
