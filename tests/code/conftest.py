"""Assembly snippets for the tests of the code layer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, explore
from gdbext.code.savemap import RestoreMap, SaveMap, restore_maps, save_maps

KERNEL_64 = 0xFFFF_FFFF_8100_0000
KERNEL_32 = 0xC010_0000


@dataclass(frozen=True)
class Snippet:
    """Assembled code: its `code`, the addresses of its labels, its bytes at `base`, and how they are read there."""

    code: Code
    read: Callable[[int, int], bytes]
    symbols: dict[str, int]
    base: int
    data: bytes

    def maps(self, entry: Entry | None = None, *others: str) -> tuple[SaveMap, RestoreMap]:
        """The fullest save map of `entry` (default: the label ``entry``) and the fullest restore map of the only exit;
        `others`: labels from which to explore, too."""
        entry = entry or Entry(self["entry"])
        reach = explore(self.code, [entry, *(self[label] for label in others)])
        (leaving,) = reach.exits
        return save_maps(self.code, entry)[0], restore_maps(self.code, reach, leaving)[0]

    def __getitem__(self, label: str) -> int:
        return self.symbols[label]


Assemble = Callable[..., Snippet]


@pytest.fixture
def assemble(tmp_path: Path) -> Assemble:
    """``assemble(source, bits=64, base=None)``: GNU as (AT&T syntax), linked at `base`."""

    def run(source: str, bits: int = 64, base: int | None = None) -> Snippet:
        at = base if base is not None else (KERNEL_64 if bits == 64 else KERNEL_32)
        text, obj, elf, binary = (tmp_path / f"snippet.{ext}" for ext in ("s", "o", "elf", "bin"))
        text.write_text(".text\n" + source + "\n")
        subprocess.run(["as", f"--{bits}", "-o", obj, text], check=True)
        emulation = "elf_x86_64" if bits == 64 else "elf_i386"
        subprocess.run(["ld", "-m", emulation, f"-Ttext={at:#x}", "-e", "0", "-o", elf, obj], check=True)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, binary], check=True)
        listing = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        symbols = {name: int(value, 16) for value, _, name in (line.split() for line in listing.splitlines())}
        data = binary.read_bytes()

        def read(address: int, length: int) -> bytes:
            if not at <= address < at + len(data):
                raise OSError("unmapped")
            return data[address - at : address - at + length]

        return Snippet(Code(read, bits), read, symbols, at, data)

    return run
