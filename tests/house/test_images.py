"""Kernel images: names for addresses, bytes, and files that are no kernels."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gdbext.errors import UsageError
from gdbext.qemu import bzimage, guests, images
from gdbext.qemu.images import Image, Symbol, Symbols


@pytest.fixture(scope="module")
def kernel() -> Image:
    return images.load(guests.build(guests.find("nrk-rflags")))


def test_names_have_offsets_and_ends() -> None:
    symbols = Symbols([Symbol(0x1000, 0x1010, "first"), Symbol(0x1010, 0x1018, "second")])
    assert symbols.name(0x1000) == "first"
    assert symbols.name(0x100F) == "first+0xf"
    assert symbols.name(0x1010) == "second"
    assert symbols.name(0x1018) is None
    assert symbols.name(0xFFF) is None
    assert symbols.address("second") == 0x1010
    assert symbols.address("third") is None
    assert Symbols().name(0) is None


def test_a_slide_moves_all() -> None:
    symbols = Symbols([Symbol(0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1000, "_text")])
    symbols.slide = 0x1200_0000
    assert symbols.name(0xFFFF_FFFF_9300_0010) == "_text+0x10"
    assert symbols.name(0xFFFF_FFFF_8100_0010) is None
    assert symbols.address("_text") == 0xFFFF_FFFF_9300_0000


def linux() -> Symbols:
    return Symbols(
        [
            Symbol(0x1F000, 0x20000, "cpu_info"),
            Symbol(0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_1000, "_text"),
            Symbol(0xFFFF_FFFF_81C0_0B00, 0xFFFF_FFFF_81C0_0B80, "asm_exc_page_fault"),
        ]
    )


def test_linux_has_no_names_until_it_is_found() -> None:
    symbols = linux()
    assert symbols.name(0xFFFF_FFFF_8100_0000) is None
    assert symbols.address("_text") is None
    assert symbols.addresses == []
    assert not symbols.settle(32, 0xFFFF_FFFF_93C0_0B00)
    assert not symbols.settle(14, 0xFFFF_FFFF_93C0_0B09), "the early handlers are no page's distance away"
    assert not symbols.settle(14, 0xFFFF_FFFF_41C0_0B00), "nor can it have moved down"
    assert symbols.settle(14, 0xFFFF_FFFF_93C0_0B00)
    assert symbols.name(0xFFFF_FFFF_9300_0010) == "_text+0x10"


def test_per_cpu_offsets_do_not_move() -> None:
    symbols = linux()
    assert symbols.address("cpu_info") == 0x1F000, "known before the kernel is found"
    assert symbols.settle(14, 0xFFFF_FFFF_93C0_0B00)
    assert symbols.address("cpu_info") == 0x1F000
    assert symbols.name(0x1F010) is None, "an address of user code"
    assert symbols.name(0x1F010 + 0x1200_0000) is None


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 64)), max_size=20), st.integers(0, 1100))
def test_a_name_is_always_of_a_symbol_that_reaches(ranges: list[tuple[int, int]], address: int) -> None:
    symbols = Symbols([Symbol(start, start + size, f"s{start}") for start, size in ranges])
    name = symbols.name(address)
    named = name.split("+")[0] if name is not None else None
    assert named in {None, *(f"s{start}" for start, size in ranges if start <= address < start + size)}
    assert name is not None or address not in dict(ranges)


def test_a_bundled_kernel(kernel: Image) -> None:
    address = kernel.symbols.address("interrupt_entry")
    assert address is not None
    assert kernel.bits == 64
    assert kernel.symbols.name(address + 1) == "interrupt_entry+0x1"
    assert len(kernel.read(address, 8)) == 8
    with pytest.raises(OSError, match="no bytes"):
        kernel.read(0x1234, 8)


def test_a_32_bit_kernel() -> None:
    image = images.load(guests.build(guests.find("clean-ia32")))
    assert image.bits == 32
    assert len(image.symbols) > 50


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither an ELF file nor a Linux bzImage"),
        (b"#!/bin/sh\n", "neither an ELF file nor a Linux bzImage"),
        (b"\x7fELF", "damaged ELF file"),
        (b"\x7fELF" + bytes(200), "damaged ELF file"),
    ],
)
def test_what_is_no_kernel(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        images.load(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="cannot read the kernel"):
            images.load(path)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    for content, said in ((b"\x7fELF", "larger than 2 GiB; take debugging"), (b"", "neither an ELF file nor")):
        path = tmp_path / "huge"
        path.write_bytes(content)
        os.truncate(path, 1 << 40)
        with pytest.raises(UsageError, match=said):
            images.load(path)


def test_a_foreign_kernel_is_refused(kernel: Image, tmp_path: Path) -> None:
    data = bytearray(kernel.path.read_bytes())
    data[18:20] = (0xF3).to_bytes(2, "little")  # EM_RISCV
    path = tmp_path / "riscv"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="only x86"):
        images.load(path)


def test_a_damaged_elf_never_raises_anything_else(kernel: Image, tmp_path: Path) -> None:
    """Cut anywhere, an ELF file is read or refused."""
    data = kernel.path.read_bytes()
    path = tmp_path / "cut"
    for length in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:length])
        try:
            images.load(path)
        except UsageError:
            continue


def pack(payload: bytes) -> bytes:
    """A bzImage of nothing but its header and `payload`, with the size that the kernel's build appends."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


def lz4_legacy(data: bytes) -> bytes:
    blocks = [lz4.block.compress(data[i : i + (8 << 20)], store_size=False) for i in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
        lambda data: zstandard.ZstdCompressor().compress(data),
        lz4_legacy,
    ],
    ids=["gzip", "bzip2", "xz", "lzma", "zstd", "lz4"],
)
def test_every_compression(compress: Callable[[bytes], bytes]) -> None:
    vmlinux = b"\x7fELF" + bytes(range(256)) * 40_000
    image = pack(compress(vmlinux) + struct.pack("<I", len(vmlinux)))
    assert bzimage.is_bzimage(image)
    assert bzimage.unpack(image) == vmlinux


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "unknown way"),
        (b"nonsense", "unknown way"),
        (gzip.compress(b"x"), "not an ELF"),
        (b"\x1f\x8bxx", "damaged"),
    ],
)
def test_a_bad_bzimage_is_told(payload: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bzimage.unpack(pack(payload))
