"""What a kernel image tells before the kernel runs: where it loads its IDT and writes the system-call MSRs. Pure.

The executable segments of the ELF file are searched for the instructions' bytes, so that neither symbols nor an
entry point that leads there are needed. A match in the middle of another instruction does no harm: it is never
executed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gdbext.arch.registers import MSR_CSTAR, MSR_LSTAR, MSR_STAR, MSR_SYSENTER_EIP
from gdbext.errors import CtxwatchError

ENTRY_MSRS: Final = frozenset({MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SYSENTER_EIP})
"""The MSRs that say where system calls enter and what selectors they load."""

_LIDT: Final = re.compile(rb"\x0f\x01[\x18-\x1f\x58-\x5f\x98-\x9f]")
_WRMSR: Final = re.compile(rb"\x0f\x30")
_MOV_ECX: Final = re.compile(rb"\xb9(....)", re.DOTALL)
_NEAR: Final = 48
"""Bytes before a wrmsr in which its constant ECX is looked for."""
_PT_LOAD, _EXECUTABLE = 1, 1
_MAX_SEGMENTS: Final = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """An executable segment: guest virtual and physical address of its first byte, and its bytes."""

    virtual: int
    physical: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MsrSite:
    """A ``wrmsr`` at ``address``; ``msr``: the constant in ECX, or None if none is near."""

    address: int
    msr: int | None


def segments(path: Path) -> list[Segment]:
    """The executable segments of the ELF file at `path`; raises CtxwatchError if it is none or is cut short."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CtxwatchError(f"cannot read {path}", error.strerror or str(error)) from error
    if raw[:4] != b"\x7fELF" or raw[4:6] not in (b"\x01\x01", b"\x02\x01"):
        raise CtxwatchError(f"{path} is not a little-endian ELF file")
    try:
        return list(_segments(raw, raw[4] == 2))
    except struct.error as error:
        raise CtxwatchError(f"{path} is a damaged ELF file", str(error)) from error


def _segments(raw: bytes, wide: bool) -> Iterator[Segment]:
    offset, size, count = (
        (*struct.unpack_from("<Q", raw, 32), *struct.unpack_from("<HH", raw, 54))
        if wide
        else (*struct.unpack_from("<I", raw, 28), *struct.unpack_from("<HH", raw, 42))
    )
    for index in range(min(count, _MAX_SEGMENTS)):
        at = offset + index * size
        if wide:
            kind, flags, start, virtual, physical, length = struct.unpack_from("<IIQQQQ", raw, at)
        else:
            kind, start, virtual, physical, length, _, flags = struct.unpack_from("<IIIIIII", raw, at)
        if kind == _PT_LOAD and flags & _EXECUTABLE:
            yield Segment(virtual, physical, raw[start : start + length])


def entry_point(path: Path) -> int | None:
    """Where the ELF file at `path` begins to run; None if it does not say."""
    with path.open("rb") as file:
        raw = file.read(32)
    if raw[:4] != b"\x7fELF" or len(raw) < 32:
        return None
    return int.from_bytes(raw[24:32] if raw[4] == 2 else raw[24:28], "little") or None


def lidt_sites(image: list[Segment]) -> set[int]:
    """Every address at which a ``lidt`` may lie, virtual and, where the two differ, physical: a kernel's first
    instructions run where it was loaded, not where it was linked."""
    sites = set()
    for segment in image:
        for match in _LIDT.finditer(segment.data):
            sites.add(segment.virtual + match.start())
            sites.add(segment.physical + match.start())
    return sites


def msr_sites(image: list[Segment]) -> list[MsrSite]:
    """Every ``wrmsr`` that may write one of ENTRY_MSRS, virtual addresses only (by then the kernel runs mapped).

    Where some are known to by a constant, those whose register is not known are left out.
    """
    sites = []
    for segment in image:
        for match in _WRMSR.finditer(segment.data):
            msr = _constant_before(segment.data, match.start())
            if msr is None or msr in ENTRY_MSRS:
                sites.append(MsrSite(segment.virtual + match.start(), msr))
    known = {site.msr for site in sites}
    if MSR_LSTAR in known or MSR_SYSENTER_EIP in known:
        return [site for site in sites if site.msr is not None]
    return sites


def _constant_before(data: bytes, at: int) -> int | None:
    """The constant of the last ``mov $x, %ecx`` in reach before offset `at`."""
    found = None
    for match in _MOV_ECX.finditer(data, max(0, at - _NEAR), at):
        found = int.from_bytes(match[1], "little")
    return found
