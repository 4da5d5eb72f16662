"""What images and tables tell: lidt and wrmsr sites, handlers, system-call entries, all from bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdbext.arch.registers import MSR_LSTAR
from gdbext.code.operands import Mem, linear
from gdbext.errors import CtxwatchError
from gdbext.gdb import discover, image
from gdbext.gdb.image import MsrSite, Segment
from gdbext.gdb.tables import Tables
from gdbext.qemu import guests

BASE = 0xFFFF_FFFF_8010_0000


def gate(offset: int, *, ist: int = 0, kind: int = 0x8E) -> bytes:
    low, mid, high = offset & 0xFFFF, offset >> 16 & 0xFFFF, offset >> 32
    return (
        low.to_bytes(2, "little") + b"\x08\0" + bytes([ist, kind]) + mid.to_bytes(2, "little")
        + high.to_bytes(4, "little") + bytes(4)
    )  # fmt: skip


def reader(start: int, data: bytes) -> discover.Read:
    def read(address: int, length: int) -> bytes:
        if not start <= address < start + len(data):
            raise OSError
        return data[address - start : address - start + length]

    return read


def test_gates_of_one_handler_are_one() -> None:
    table = gate(BASE) + gate(BASE + 16, ist=3) + bytes(16) + gate(BASE, kind=0xEF)
    found = discover.handlers(reader(0x1000, table), 0x1000, len(table) - 1, 64)
    assert [(h.address, h.vectors, h.ist, h.callable) for h in found] == [
        (BASE, (0, 3), 0, True),
        (BASE + 16, (1,), 3, False),
    ]


def test_an_unmapped_table_has_no_handlers() -> None:
    assert discover.handlers(reader(0, b""), 0x1000, 0xFFF, 64) == []


def test_tables_follow_changed_gates_and_forget_unused_tables() -> None:
    memory = bytearray(gate(BASE))
    tables = Tables(lambda address, length: bytes(memory[:length]))
    tables.load(0, 0x1000, 15, 64)
    assert tables.refresh()
    assert not tables.refresh()
    memory[:] = gate(BASE + 32)
    assert tables.refresh()
    assert [h.address for h in tables.handlers()] == [BASE + 32]
    tables.load(1, 0x2000, 15, 64)
    assert len(tables.describe()) == 2
    tables.load(0, 0x2000, 15, 64)
    assert tables.describe() == [(0x2000, 15)]


def test_lidt_and_msr_sites_in_code() -> None:
    code = b"\x90\x0f\x01\x5c\x24\x06" + b"\xb9" + MSR_LSTAR.to_bytes(4, "little") + b"\x0f\x30" + b"\x0f\x30"
    segments = [Segment(BASE, 0x10_0000, code)]
    assert image.lidt_sites(segments) == {BASE + 1, 0x10_0001}
    assert image.msr_sites(segments) == [MsrSite(BASE + 11, MSR_LSTAR), MsrSite(BASE + 13, MSR_LSTAR)]
    unknown = [Segment(BASE, BASE, b"\x0f\x30\xc3")]
    assert image.msr_sites(unknown) == [MsrSite(BASE, None)]
    assert image.msr_sites([Segment(BASE, BASE, b"\xb9\x00\x01\x00\xc0\x0f\x30")]) == []


@pytest.mark.parametrize(("name", "entry"), [("clean-nrk", "syscall_entry"), ("clean-osdev", "syscall_entry")])
def test_the_system_call_entry_is_found_from_code_alone(name: str, entry: str) -> None:
    from gdbext.qemu import images

    kernel = guests.build(guests.find(name))
    segments = image.segments(kernel)
    symbols = images.load(kernel).symbols

    def read(address: int, length: int) -> bytes:
        for segment in segments:
            if segment.virtual <= address < segment.virtual + len(segment.data):
                return segment.data[address - segment.virtual :][:length]
        raise OSError

    everything = [(segment.virtual, segment.data) for segment in segments]
    assert discover.syscall_entries(read, everything, 64) == [symbols.address(entry)]
    # Without the constant that is written to LSTAR, the entry's beginning tells.
    hidden = [(start, data.replace(b"\xb9\x82\x00\x00\xc0", bytes(5))) for start, data in everything]
    assert symbols.address(entry) in discover.syscall_entries(read, hidden, 64)


def test_a_linear_address_counts_segment_bases_and_wraps() -> None:
    regs = {"rax": 0xFFFF_FFFF_FFFF_FFF0, "rbx": 4, "gs_base": 0x1000}
    assert linear(Mem("", "rax", "rbx", 8, 0, 8), regs) == 0x10
    assert linear(Mem("gs", "", "", 1, 8, 8), regs) == 0x1008


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a little-endian ELF"),
        (b"\x7fELF\x02\x01" + bytes(10), "damaged"),
        (b"MZ" * 99, "not a little-endian"),
    ],
)
def test_files_that_are_no_elf_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(CtxwatchError, match=says):
        image.segments(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_searched_without_error(data: bytes) -> None:
    discover.of_table(data, 64)
    discover.of_table(data, 32)
    segments = [Segment(BASE, BASE, data)]
    image.lidt_sites(segments)
    image.msr_sites(segments)
    discover.syscall_entries(reader(BASE, data), [(BASE, data)], 64)
