"""Expressions over registers, segment bases, symbols and memory, as profiles write them.

Grammar: sums and differences of terms; a term is a number, a register of the event row, ``gs:offset`` or ``fs:offset``
(base plus offset), a symbol, a product, or ``[expression]``: the word at that address. ``[gs:8]`` is the word eight
bytes behind the GS base, ``ksCurThread + 0`` the address of a symbol, ``[ksCurThread]`` what it holds. All values are
guest virtual and wrap at 64 bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gdbext.arch.addresses import MASK64
from gdbext.errors import UsageError

MAX_DEPTH: Final = 16
_TOKEN: Final = re.compile(r"\s*(?:(0[xX][0-9a-fA-F]+|\d+)|([A-Za-z_.$][\w.$@]*)|([\[\]()+*:-]))")


@dataclass(frozen=True, slots=True)
class Scope:
    """What an expression is evaluated in.

    registers: column name to value (also ``gs_base``, ``fs_base``).  symbol: name to address, None if unknown.
    read: guest virtual memory, raising OSError where it is unmapped.  word: bytes of a pointer.
    """

    registers: Mapping[str, int]
    symbol: Callable[[str], int | None]
    read: Callable[[int, int], bytes]
    word: int = 8


class Expression:
    """A parsed expression; raises UsageError (with the place) when the text is not one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = _tokens(text)
        self._check()

    def evaluate(self, scope: Scope) -> int:
        """The value in `scope`; raises OSError for unmapped memory and UsageError for an unknown name."""
        return _Parser(self._tokens, scope, self.text).run()

    def names(self) -> set[str]:
        """Every name the expression uses."""
        return {token for token in self._tokens if token[0].isalpha() or token[0] in "_.$"}

    @property
    def below_pointer(self) -> int:
        """N where the expression ends in ``[...] - N``: how far below a pointer in memory it lies; else 0."""
        end = self._tokens[-3:]
        return _number(end[2]) if end[:2] == ["]", "-"] and end[2][0].isdigit() else 0

    def _check(self) -> None:
        nothing = Scope({}, lambda _: 0, lambda _, length: bytes(length))
        _Parser(self._tokens, nothing, self.text).run()


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise UsageError(
                f"expression {text!r}", f"nothing begins with {text[at:].lstrip()[:1]!r}", "see docs/profiles.md"
            )
        tokens.append(match.group(0).strip())
        at = match.end()
    return tokens


def _number(token: str) -> int:
    return int(token, 16 if token[:2].lower() == "0x" else 10)


class _Parser:
    """Recursive descent that evaluates as it goes; the check at load runs it over a scope in which all is zero."""

    def __init__(self, tokens: list[str], scope: Scope, text: str) -> None:
        self._tokens, self._scope, self._text = tokens, scope, text
        self._at = 0
        self._depth = 0

    def run(self) -> int:
        value = self._sum()
        if self._at < len(self._tokens):
            raise self._error(f"{self._tokens[self._at]!r} is left over")
        return value

    def _error(self, why: str) -> UsageError:
        return UsageError(f"expression {self._text!r}", why, "see docs/profiles.md")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise self._error(f"{token!r} is missing")

    def _sum(self) -> int:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"it is nested deeper than {MAX_DEPTH}")
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._next() == "+" else value - self._product()
        self._depth -= 1
        return value & MASK64

    def _product(self) -> int:
        value = self._term()
        while self._peek() == "*":
            self._next()
            value = value * self._term() & MASK64
        return value

    def _term(self) -> int:
        token = self._next()
        if token == "[":
            address = self._sum()
            self._expect("]")
            return int.from_bytes(self._scope.read(address, self._scope.word), "little")
        if token == "(":
            value = self._sum()
            self._expect(")")
            return value
        if token[:1].isdigit():
            return _number(token)
        if not token or not (token[0].isalpha() or token[0] in "_.$"):
            raise self._error(f"a value is missing before {token!r}" if token else "it ends too early")
        if self._peek() == ":" and token in ("gs", "fs"):
            self._next()
            return self._name(f"{token}_base") + self._term()
        return self._name(token)

    def _name(self, name: str) -> int:
        if name in self._scope.registers:
            return self._scope.registers[name]
        address = self._scope.symbol(name)
        if address is None:
            raise self._error(f"{name!r} is neither a register nor a known symbol")
        return address
