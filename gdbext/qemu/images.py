"""Kernel images: names for addresses, and the bytes the image brings with it.

An ELF file is read with pwntools; a bzImage (``vmlinuz``) is turned into an ELF with symbols by vmlinux-to-elf first,
once, and kept in the user's cache.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gdbext.arch import vectors
from gdbext.arch.addresses import MASK64
from gdbext.errors import UsageError, printable
from gdbext.qemu import bzimage, cache, child
from gdbext.rules import fixups
from gdbext.rules.fixups import Fixups

_SYMBOL: Final = {
    64: np.dtype(
        [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
    ),
    32: np.dtype(
        [("name", "<u4"), ("value", "<u4"), ("size", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2")]
    ),
}
"""Elf64_Sym and Elf32_Sym (System V gABI, "Symbol Table")."""

_FUNC: Final = 2
"""The last symbol type of interest: STT_NOTYPE, STT_OBJECT, STT_FUNC."""
_UNDEFINED, _FIRST_RESERVED, _ABSOLUTE = 0, 0xFF00, 0xFFF1
_PREFERENCE: Final = (1, 2, 0)
"""By symbol type: where several name one address, a function before an assembler's label before data."""


_ANCHORS: Final = {
    vectors.PF: ("asm_exc_page_fault", "page_fault"),
    vectors.SYSCALL: ("entry_SYSCALL_64",),
    vectors.SYSENTER: ("entry_SYSENTER_32",),
}
"""Handlers of Linux by vector, under the names they have had."""
_FARTHEST: Final = 1 << 30
"""KASLR moves the kernel by less (Linux, CONFIG_RANDOMIZE_BASE)."""
_PAGE: Final = 4096
_ELF: Final = b"\x7fELF"
_HEAD: Final = 4096
"""Bytes that show what a file is."""
_LARGEST: Final = 2 << 30
"""Bytes that are read of a kernel; with debugging information Linux comes to about half of them."""


class Symbol(NamedTuple):
    """One name: link-time address, the first address that is no longer its own."""

    address: int
    end: int
    name: str


class Symbols:
    """Names of a kernel's addresses.

    slide: what is added to the link-time addresses of the kernel proper, None while it is not known: Linux with KASLR
    says where it is by its first handlers (:meth:`settle`). Until then there are no names, rather than wrong ones.
    """

    def __init__(self, symbols: Iterable[Symbol] = ()) -> None:
        self._symbols = sorted(symbols, key=lambda symbol: symbol.address)
        self._starts = [symbol.address for symbol in self._symbols]
        self._by_name = {symbol.name: symbol.address for symbol in reversed(self._symbols)}
        self._anchors = {
            vector: self._by_name[name] for vector, names in _ANCHORS.items() for name in names if name in self._by_name
        }
        # Linux links 64-bit per-CPU variables at 0: their addresses are offsets, which do not move.
        self._fixed_below = 1 << 63 if self._anchors and self._starts[-1] >> 63 else 0
        self.slide: int | None = None if self._anchors else 0

    def __len__(self) -> int:
        return len(self._symbols)

    @property
    def addresses(self) -> list[int]:
        """The guest virtual addresses that have names, ascending."""
        return [self._moved(start) for start in self._starts] if self.slide is not None else []

    @property
    def are_linux(self) -> bool:
        """True if they hold Linux's names for its first handlers."""
        return bool(self._anchors)

    def settle(self, vector: int, handler: int) -> bool:
        """Learn the slide from the address of the handler of `vector` as it was seen; False if it tells nothing."""
        anchor = self._anchors.get(vector)
        if anchor is None:
            return False
        slide = handler - anchor
        if not 0 <= slide < _FARTHEST or slide % _PAGE:
            return False
        self.slide = slide
        return True

    def name(self, address: int) -> str | None:
        """``function+0x12`` for the guest virtual `address`, None where no symbol reaches."""
        if self.slide is None:
            return None
        linked = (address - self.slide) & MASK64
        index = bisect.bisect_right(self._starts, linked) - 1
        if index < 0 or linked >= self._symbols[index].end or linked < self._fixed_below:
            return None
        symbol = self._symbols[index]
        offset = linked - symbol.address
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name

    def address(self, name: str) -> int | None:
        """The guest virtual address of `name` (a per-CPU variable's offset), or None."""
        linked = self._by_name.get(name)
        if linked is None or (self.slide is None and linked >= self._fixed_below):
            return None
        return self._moved(linked)

    def _moved(self, linked: int) -> int:
        return linked if linked < self._fixed_below else (linked + (self.slide or 0)) & MASK64


class Image:
    """A kernel file.

    ``digest``: the file's SHA-256; ``bits``: 32 or 64; ``symbols``: empty for a stripped one; ``fixups``: Linux's
    exception table, None if it has none; ``packed``: the file is compressed, so that only ctxwatch can read it.
    """

    def __init__(self, path: Path, digest: str, elf: Any, packed: bool = False) -> None:
        self.path = path
        self.digest = digest
        self.packed = packed
        self.bits = int(elf.elfclass)
        self.symbols = Symbols(_symbols(elf))
        self.fixups = _fixups(elf)
        self._segments = [
            (int(segment.header.p_vaddr), bytes(segment.data()))
            for segment in elf.iter_segments()
            if segment.header.p_type == "PT_LOAD"
        ]

    @property
    def segments(self) -> list[tuple[int, bytes]]:
        """What is loaded: guest virtual address (as linked) and bytes."""
        return list(self._segments)

    def read(self, address: int, length: int) -> bytes:
        """The file's bytes for guest virtual `address`; raises OSError where it holds none.

        These are the bytes before the kernel ran: it may have patched its code since.
        """
        linked = (address - (self.symbols.slide or 0)) & MASK64
        for start, data in self._segments:
            if start <= linked < start + len(data):
                return data[linked - start : linked - start + length]
        raise OSError(f"the image holds no bytes for {address:#x}")


def load(path: Path) -> Image:
    """Read the kernel file `path`: an ELF file or a Linux bzImage. Raises UsageError for anything else."""
    data = _contents(path)
    return _load_elf(path, data, path if data.startswith(_ELF) else _unpacked(path, data))


def _contents(path: Path) -> bytes:
    """All of the file; of what is no kernel, the beginning alone is read."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UsageError(f"cannot read the kernel {path}", "it is no regular file", "copy it into a file first")
            head = file.read(_HEAD)
            if not head.startswith(_ELF) and not bzimage.is_bzimage(head):
                why = "it is neither an ELF file nor a Linux bzImage"
                raise UsageError(f"{path} is not a kernel that can be read", why)
            if about.st_size > _LARGEST:
                why = f"it is larger than {_LARGEST >> 30} GiB"
                raise UsageError(f"cannot read the kernel {path}", why, "take debugging information out with strip -g")
            file.seek(0)
            return file.read()
    except OSError as error:
        raise UsageError(f"cannot read the kernel {path}", error.strerror or str(error)) from error


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe without waiting for who writes it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _load_elf(shown: Path, data: bytes, path: Path) -> Image:
    try:
        elf = _parse(path)
        with contextlib.closing(elf):
            if elf.arch not in ("amd64", "i386"):
                raise UsageError(f"{shown} is a kernel for {elf.arch}", "only x86 guests can be watched")
            return Image(shown, hashlib.sha256(data).hexdigest(), elf, packed=shown != path)
    except UsageError:
        raise
    except Exception as error:  # a damaged ELF file can make the parser fail in any way
        raise UsageError(f"{shown} is a damaged ELF file", f"{type(error).__name__}: {error}") from error


def _parse(path: Path) -> Any:
    child.silence()
    from pwnlib.elf.elf import ELF

    class Kernel(ELF):  # type: ignore[misc]  # pwntools has no types
        def _populate_kernel_version(self) -> None:
            """Leave it: pwntools gives up on releases such as 6.12.95+deb12, and nothing here asks for it."""

        def _populate_symbols(self) -> None:
            """Leave them, too: made one by one, a Linux kernel's symbols take seconds (see :func:`_symbols`)."""

        def _populate_functions(self) -> None:
            """Likewise."""

    return Kernel(str(path), checksec=False)


def _fixups(elf: Any) -> Fixups | None:
    section = elf.get_section_by_name("__ex_table")
    if section is None:
        return None
    return Fixups(frozenset(fixups.parse(int(section["sh_addr"]), bytes(section.data()), int(elf.elfclass))))


def _symbols(elf: Any) -> list[Symbol]:
    """One symbol an address, the most telling; it reaches to the next one, at most to its section's end."""
    table = elf.get_section_by_name(".symtab")
    if table is None:
        return []
    names = bytes(elf.get_section(table["sh_link"]).data())
    raw = bytes(table.data())
    kind = _SYMBOL[int(elf.elfclass)]
    rows = np.frombuffer(raw[: len(raw) // kind.itemsize * kind.itemsize], kind)
    types, section = rows["info"] & 0xF, rows["shndx"]
    defined = (section != _UNDEFINED) & ((section < _FIRST_RESERVED) | (section == _ABSOLUTE))
    rows = rows[defined & (types <= _FUNC) & (rows["name"] != 0)]
    local, preference = rows["info"] >> 4 == 0, np.array(_PREFERENCE)[rows["info"] & 0xF]
    rows = rows[np.lexsort((local, preference, rows["value"]))]
    rows = rows[np.unique(rows["value"], return_index=True)[1]]
    limits = {i: int(s["sh_addr"]) + int(s["sh_size"]) for i, s in enumerate(elf.iter_sections())}
    starts = rows["value"].tolist()
    fields = (starts, [*starts[1:], 1 << 64], rows["name"].tolist(), rows["shndx"].tolist(), rows["size"].tolist())
    return [
        Symbol(start, min(limits.get(index, start + max(size, 1)), after), _text(names, name))
        for start, after, name, index, size in zip(*fields, strict=True)
    ]


def _text(names: bytes, start: int) -> str:
    return printable(names[start : names.find(b"\0", start)].decode("utf-8", "replace"))


def _unpacked(path: Path, data: bytes) -> Path:
    """The ELF file made from the bzImage `data`, out of the cache if it was made before."""
    name = f"{hashlib.sha256(data).hexdigest()[:32]}.elf"
    cached = cache.directory("kernels") / name
    if cached.exists():
        return cached
    partial = cache.made("kernels") / f"{name}.{os.getpid()}"
    from vmlinux_to_elf.core.elf_symbolizer import ElfSymbolizer

    try:
        with _quiet():
            ElfSymbolizer(bzimage.unpack(data), str(partial))
        partial.rename(cached)
    except Exception as error:  # it gives up in many ways, none of which is ours to tell apart
        partial.unlink(missing_ok=True)
        raise UsageError(
            f"no symbols can be had from {path}",
            f"{type(error).__name__}: {error}",
            "run without --kernel, or give a vmlinux",
        ) from error
    return cached


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep vmlinux-to-elf, which logs its guesses as warnings, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
