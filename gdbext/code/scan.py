"""Looking for thread switches in a range of bytes, where no path from an entry is short enough to lead to them.

A scheduler lies many calls behind an interrupt: in a large kernel an exploration would have to see a hundred
thousand instructions first. Its switch, though, has a shape that a pattern finds and a walk confirms.
"""

from __future__ import annotations

import re
from typing import Final

from gdbext.code.classify import is_padding, stores_stack_pointer
from gdbext.code.disasm import MAX_INSN, Code, Flow
from gdbext.code.listing import listing
from gdbext.code.paths import Limits, explore
from gdbext.code.switches import SwitchFunction, switch_after

# mov %rsp, mem: opcode 89, ModRM reg = 4, mod != 3; the load of RSP follows within a few instructions: 8b with the
# same ModRM, or a move from a register (8b reg = 4 mod = 3, 89 rm = 4 mod = 3).
_MEMORY: Final = rb"[\x20-\x27\x60-\x67\xa0-\xa7]"
_LOAD: Final = rb"(?:\x8b[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]|\x89[\xc4\xcc\xd4\xdc\xec\xf4\xfc])"
_STORE_64: Final = re.compile(rb"[\x48\x49]\x89" + _MEMORY + rb"(?=.{0,63}?[\x48\x49\x4c]" + _LOAD + rb")", re.DOTALL)
_STORE_32: Final = re.compile(rb"\x89" + _MEMORY + rb"(?=.{0,63}?" + _LOAD + rb")", re.DOTALL)
_CHUNK: Final = 1 << 20
_BEFORE: Final = 24
_WALK: Final = Limits(instructions=300, calls=0)


def scan_switches(code: Code, start: int, end: int) -> list[SwitchFunction]:
    """The thread switches whose store of RSP lies in [`start`, `end`) (guest virtual), in order of address."""
    pattern = _STORE_64 if code.bits == 64 else _STORE_32
    found: dict[int, SwitchFunction] = {}
    for base in range(start, end, _CHUNK):
        data = code.bytes_at(base, min(_CHUNK, end - base) + 2 * _MAX_PATTERN)
        for match in pattern.finditer(data):
            store = base + match.start()
            if store < min(base + _CHUNK, end):
                function = _confirm(code, store)
                if function is not None:
                    found.setdefault(function.entry, function)
    return [found[entry] for entry in sorted(found)]


_MAX_PATTERN: Final = 64 + MAX_INSN


def _confirm(code: Code, store: int) -> SwitchFunction | None:
    insn = code.insn(store)
    if insn is None or not stores_stack_pointer(insn):
        return None
    entry = store
    for line in reversed(listing(code, store, before=_BEFORE, after=0)[:-1]):
        if line.flow is not Flow.NEXT or line.name == "hlt" or is_padding(line):
            break
        entry = line.address
        if line.name.startswith("endbr"):
            break
    reach = explore(code, [store], _WALK)
    return switch_after(code, reach, store, entry)
