"""``x`` and ``print`` for a recording, with GDB's spelling: addresses by register, name and number, words as GDB
lays them out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from gdbext.code import listing
from gdbext.code.disasm import Code
from gdbext.errors import NotCapable, UsageError

Read = Callable[[int, int], bytes]
Lookup = Callable[[str], int | None]

_FORMAT: Final = re.compile(r"(?:/(?P<count>\d*)(?P<letters>[a-z]*))?\s*(?P<where>.*)")
_TERM: Final = re.compile(r"\s*([+-]?)\s*(\$?[A-Za-z_][\w.]*|0[xX][0-9a-fA-F]+|\d+)\s*")
_SIZES: Final = {"b": 1, "h": 2, "w": 4, "g": 8}
_PER_LINE: Final = {1: 8, 2: 8, 4: 4, 8: 2}
_MOST: Final = 4096


def number(text: str, register: Lookup, symbol: Lookup) -> int:
    """The value of a sum of numbers, registers (``$rsp``) and names, modulo 2^64. Raises UsageError."""
    total, at = 0, 0
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None or (at and not term[1]):
            raise UsageError(f"{text!r} is not understood here", todo="give a sum like $rsp+0x10, or a name")
        total += (-1 if term[1] == "-" else 1) * _value(term[2], register, symbol)
        at = term.end()
    if not text.strip():
        raise UsageError("an address is missing", todo="give a sum like $rsp+0x10, or a name")
    return total & ((1 << 64) - 1)


def _value(term: str, register: Lookup, symbol: Lookup) -> int:
    if term[0].isdigit():
        return int(term, 0) if term[:2] in ("0x", "0X") else int(term)
    found = register(term[1:]) if term.startswith("$") else symbol(term)
    if found is None:
        what = "register" if term.startswith("$") else "name"
        raise NotCapable(f"the {what} {term} is not in the recording")
    return found


def examine(
    words: str, read: Read, register: Lookup, symbol: Lookup, named: Callable[[int], str], bits: int
) -> Iterator[str]:
    """The lines that ``x`` followed by `words` shows (``/4gx $rsp``). Raises UsageError, or NotCapable where the memory
    was not captured."""
    found = _FORMAT.fullmatch(words.strip())
    assert found is not None
    count = int(found["count"] or 1)
    letters = found["letters"] or ""
    if not 0 < count <= _MOST or set(letters) - set("xiduosbhwg"):
        raise UsageError(f"x{words[: words.find(' ')]}: this format is not known here", todo="x, d, u, s and i are")
    address = number(found["where"], register, symbol)
    if "i" in letters:
        yield from _instructions(address, count, read, named, bits)
        return
    size = next((_SIZES[letter] for letter in reversed(letters) if letter in _SIZES), 8 if bits == 64 else 4)
    if "s" in letters:
        yield f"{named(address)}:\t{_string(read(address, 200))}"
        return
    yield from _words(address, count, size, letters, read, named)


def _words(address: int, count: int, size: int, letters: str, read: Read, named: Callable[[int], str]) -> Iterator[str]:
    while count > 0:
        line = min(count, _PER_LINE[size])
        data = read(address, line * size)
        whole = len(data) // size
        if whole:
            values = [data[n * size : (n + 1) * size] for n in range(whole)]
            yield f"{named(address)}:\t" + "\t".join(_shown(value, letters) for value in values)
        if whole < line:
            read(address + whole * size, size)  # says why there is no more
            raise NotCapable(f"memory at {address + whole * size:#x} is not in the recording")
        address, count = address + line * size, count - line


def _shown(value: bytes, letters: str) -> str:
    if "d" in letters:
        return str(int.from_bytes(value, "little", signed=True))
    unsigned = int.from_bytes(value, "little")
    return str(unsigned) if "u" in letters else f"0x{unsigned:0{2 * len(value)}x}"


def _string(data: bytes) -> str:
    text = data.split(b"\0")[0]
    return '"' + "".join(chr(b) if 32 <= b < 127 else f"\\{b:03o}" for b in text) + '"'


def _instructions(address: int, count: int, read: Read, named: Callable[[int], str], bits: int) -> Iterator[str]:
    read(address, 1)  # says why if there is nothing
    code = Code(read, bits)
    for _ in range(count):
        insn = code.insn(address)
        if insn is None:
            raise NotCapable(f"the code at {address:#x} is not in the recording")
        yield f"   {named(address)}:\t{listing.text(insn)}"
        address = insn.end
