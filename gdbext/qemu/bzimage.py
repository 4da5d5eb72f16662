"""The ELF kernel inside a Linux bzImage (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header")."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

_MAGIC: Final = (0x202, b"HdrS")
_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248
_SECTOR: Final = 512
_LZ4_BLOCK: Final = 8 << 20
"""Decompressed bytes in each block of the legacy LZ4 framing that the kernel's build uses."""
_LARGEST: Final = 1 << 30


def is_bzimage(data: bytes) -> bool:
    """Whether `data` carries the header's signature."""
    offset, magic = _MAGIC
    return data[offset : offset + len(magic)] == magic


def unpack(data: bytes) -> bytes:
    """Return the vmlinux in the bzImage `data`; raises ValueError where there is none or it is damaged."""
    sectors = data[_SETUP_SECTORS] or 4  # 0 stands for 4
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    start = (sectors + 1) * _SECTOR + offset
    payload = data[start : start + length]
    for magic, expand in _FORMATS:
        if payload.startswith(magic):
            try:
                vmlinux = expand(payload)
            except Exception as error:  # each library has errors of its own
                raise ValueError(f"the compressed kernel is damaged: {error}") from error
            if not vmlinux.startswith(b"\x7fELF"):
                raise ValueError("the compressed kernel is not an ELF file")
            return vmlinux
    raise ValueError(f"the kernel is compressed in an unknown way (it starts with {payload[:4].hex(' ') or 'nothing'})")


def _gzip(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload, _LARGEST)


def _xz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, _LARGEST)


def _bzip2(payload: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload, _LARGEST)


def _zstd(payload: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj().decompress(payload)


def _lz4(payload: bytes) -> bytes:
    import lz4.block

    parts = []
    position = 4
    while position + 8 <= len(payload):  # the last four bytes are the size, put there by the kernel's build
        (size,) = struct.unpack_from("<I", payload, position)
        block = payload[position + 4 : position + 4 + size]
        parts.append(bytes(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)))
        position += 4 + size
    return b"".join(parts)


_FORMATS: Final[tuple[tuple[bytes, Callable[[bytes], bytes]], ...]] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\x00", _xz),
    (b"BZh", _bzip2),
    (b"\x5d\x00\x00", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x02\x21\x4c\x18", _lz4),
)
"""Magic numbers as the kernel's own `scripts/extract-vmlinux` looks for them."""
