"""Where each register lies in the reply to the remote protocol's ``g`` packet, from the stub's target description.

The stub describes its registers in XML (GDB manual, appendix G): every ``<reg>`` in order, ``regnum`` setting the
number of the next one. QEMU's descriptions differ by version and by 32- and 64-bit binary, so nothing is assumed.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gdbext.arch.registers import GPR32, GPR64, SEGMENTS
from gdbext.errors import CtxwatchError

Registers = dict[str, int]
"""Register values by event-column name (``rax`` … also for ia32), plus cr0, cr4, efer and mxcsr where they exist."""

_ALIASES: Final = {
    **dict(zip(GPR32, GPR64, strict=False)), "eip": "rip", "eflags": "rflags", "k_gs_base": "kernel_gs_base",
}  # fmt: skip
WANTED: Final = frozenset(
    (
        *(*GPR64, "rip", "rflags", *SEGMENTS, "fs_base", "gs_base", "kernel_gs_base"),
        *("cr0", "cr2", "cr3", "cr4", "efer", "mxcsr", "fctrl", "fstat"),
    )
)
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_NEEDED: Final = frozenset((*GPR64[:8], "rip", "rflags", "cs"))


def column(name: str) -> str:
    """The event column for the register that the stub calls `name`."""
    return _ALIASES.get(name, name)


@dataclass(frozen=True, slots=True)
class Layout:
    """``names`` in the order in which ``unpack`` yields them; ``size``: bytes of a whole reply."""

    names: tuple[str, ...]
    unpack: struct.Struct
    size: int

    def decode(self, raw: bytes) -> Registers:
        """The wanted registers in the raw bytes of a ``g`` reply, which must be ``size`` long."""
        return dict(zip(self.names, self.unpack.unpack_from(raw), strict=True))


def fetch(read: Callable[[str], str]) -> Layout:
    """The layout from the description that `read` (annex name → XML text) gives, includes followed.

    Raises CtxwatchError if the description is missing, broken or not that of an x86.
    """
    try:
        registers = list(_registers(read, "target.xml", 0))
    except ElementTree.ParseError as error:
        raise CtxwatchError("the target's register description is broken", str(error)) from error
    numbered: dict[int, tuple[str, int]] = {}
    number = 0
    for name, bits, given in registers:
        number = given if given is not None else number
        numbered[number] = (name, bits)
        number += 1
    return build([numbered[index] for index in sorted(numbered)])


def build(registers: list[tuple[str, int]]) -> Layout:
    """The layout of `registers`: (name, bits) in the order of their numbers."""
    names: list[str] = []
    form = "<"
    offset = 0
    for name, bits in registers:
        size = bits // 8
        known = column(name)
        if known in WANTED and size in _CODES and known not in names:
            names.append(known)
            form += _CODES[size]
        else:
            form += f"{size}x"
        offset += size
    if not _NEEDED.issubset(names):
        raise CtxwatchError(
            "the target is not an x86", "its description lacks " + ", ".join(sorted(_NEEDED.difference(names)))
        )
    return Layout(tuple(names), struct.Struct(form), offset)


def _registers(read: Callable[[str], str], annex: str, depth: int) -> list[tuple[str, int, int | None]]:
    found: list[tuple[str, int, int | None]] = []
    if depth > 4:
        return found
    # QEMU writes <xi:include> without declaring the prefix.
    for node in ElementTree.fromstring(read(annex).replace("<xi:include", "<include")).iter():
        tag = node.tag.rpartition("}")[2]
        if tag == "include":
            found += _registers(read, node.attrib.get("href", ""), depth + 1)
        elif tag == "reg" and "name" in node.attrib:
            given = node.attrib.get("regnum")
            found.append((node.attrib["name"], int(node.attrib.get("bitsize", "0")), int(given) if given else None))
    return found
