"""Learning from the bundled guests' code: the shipped layout comes out, and the printed mistakes are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from gdbext.code.disasm import Code
from gdbext.code.paths import Entry, Gateway
from gdbext.profiles.learn import Learnt, learn
from gdbext.profiles.profile import find

GUESTS = Path(__file__).parents[1] / "guests"


def learnt(style: str, defines: str, out: Path) -> Learnt:
    subprocess.run(
        ["make", "-s", "-C", GUESTS, f"OUT={out}", "ARCH=x86_64", f"STYLE={style}", f"DEFS={defines}"], check=True
    )
    with (out / "kernel.elf").open("rb") as file:
        elf = ELFFile(file)
        segments = [(s["p_vaddr"], s.data()) for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        table = elf.get_section_by_name(".symtab")
        symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}

    def read(address: int, length: int) -> bytes:
        for start, data in segments:
            if start <= address < start + len(data):
                return bytes(data[address - start : address - start + length])
        raise OSError("unmapped")

    stubs = symbols["vector_stubs"]
    entries = [Entry(stubs + 16 * n, vector=n) for n in (14, 32, 33)]
    entries.append(Entry(symbols["syscall_entry"], Gateway.SYSCALL))
    return learn(Code(read, 64), entries)


def test_clean_guest_gives_the_shipped_layout(tmp_path: Path) -> None:
    shipped = find("nrk").layout
    found = learnt("nrk", "", tmp_path)
    assert shipped is not None
    assert found.slots == shipped.slots
    assert found.current == "[gs:8]"
    assert found.size == shipped.size
    assert found.statements == []
    assert found.never == {}
    assert found.profile().area is not None


def test_flags_that_are_never_stored(tmp_path: Path) -> None:
    found = learnt("nrk", "BUG_NRK_RFLAGS", tmp_path)
    assert set(found.never) == {"rflags"}
    assert any("never stores RFLAGS" in statement.text and statement.word == 17 for _, statement in found.statements)


def test_frames_on_the_stack(tmp_path: Path) -> None:
    found = learnt("osdev", "", tmp_path)
    assert found.on_stack
    assert found.current == ""
    assert found.slots["rip"] > found.slots["rax"]
    assert found.statements == []


@pytest.mark.parametrize("code", [b"", b"\x90" * 64, b"\xcf", bytes(range(256))])
def test_code_that_saves_nothing(code: bytes) -> None:
    def read(address: int, length: int) -> bytes:
        return code[address - 0x1000 : address - 0x1000 + length]

    found = learn(Code(read, 64), [Entry(0x1000)])
    assert not found.found
    assert "[area]" not in found.profile_text("nothing")
