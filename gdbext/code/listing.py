"""Code as a person reads it: one instruction, or the lines around one."""

from __future__ import annotations

from collections import Counter

from gdbext.code.disasm import MAX_INSN, Code, Flow, Insn

_HINT_REACH = 4096
"""Farthest known start, in bytes, from which decoding forward is worth it."""


def text(insn: Insn) -> str:
    """``mov rax, qword ptr gs:[8]``."""
    return f"{insn.mnemonic} {insn.op_str}".rstrip()


def listing(code: Code, address: int, before: int = 4, after: int = 4, start: int | None = None) -> list[Insn]:
    """Up to `before` instructions that end at `address`, the one there, and up to `after` following ones.

    x86 code cannot be read backwards with certainty. With `start`, the known beginning of the function (guest
    virtual), it is decoded from there; else the alignment on which most possible beginnings agree is taken, which
    x86 code reaches within a few instructions whatever the beginning. Empty if nothing decodes at `address`.
    """
    first = code.insn(address)
    if first is None:
        return []
    address = first.address  # in 32-bit mode the lower half of what was asked for
    lines = _before(code, address, before, start)
    for _ in range(after + 1):
        insn = code.insn(address)
        if insn is None:
            break
        lines.append(insn)
        address = insn.end
    return lines


def _before(code: Code, address: int, count: int, start: int | None) -> list[Insn]:
    if count <= 0:
        return []
    if start is not None and 0 <= address - start <= _HINT_REACH:
        chain = _chain(code, start, address)
        if chain is not None:
            return chain[-count:]
    return _by_vote(code, address, count)


def _chain(code: Code, start: int, end: int) -> list[Insn] | None:
    """The instructions from `start` to just before `end`, or None if one straddles `end` or does not decode."""
    chain = []
    while start < end:
        insn = code.insn(start)
        if insn is None:
            return None
        chain.append(insn)
        start = insn.end
    return chain if start == end else None


def _by_vote(code: Code, address: int, count: int) -> list[Insn]:
    """Decode from every offset in reach; follow, backwards, the instruction boundaries that most chains share."""
    reach = MAX_INSN * min(count, 16) + 2 * MAX_INSN
    votes: Counter[int] = Counter()
    for offset in range(1, min(reach, address) + 1):
        for insn in _chain(code, address - offset, address) or ():
            votes[insn.address] += 1
    lines: list[Insn] = []
    end = address
    while len(lines) < count:
        possible = (code.insn(end - size) for size in range(1, min(MAX_INSN, end) + 1))
        candidates = [insn for insn in possible if insn is not None and insn.end == end and votes[insn.address]]
        if not candidates:
            break
        best = max(candidates, key=lambda insn: (votes[insn.address], insn.flow is not Flow.STOP))
        lines.insert(0, best)
        end = best.address
    return lines
