"""Colour for GDB's listings of instructions."""

from __future__ import annotations

import re
from typing import Final

from prompt_toolkit.formatted_text import StyleAndTextTuples

Fragments = StyleAndTextTuples
"""prompt_toolkit's formatted text: a list of (style, text)."""

_INSTRUCTION: Final = re.compile(
    r"(?P<mark>=> |\s*)(?P<address>0x[0-9a-f]+)(?P<symbol> <[^>\s]+>)?:(?P<gap>\s+(?:(?:[0-9a-f]{2} )*[0-9a-f]{2}\s+)?)"
    r"(?P<code>(?:\(bad\)|[a-z][a-z0-9.]*)(?:\s.*)?)"
)
"""A line of ``x/i`` or ``disassemble``, with or without the raw bytes; the code begins with a mnemonic."""


def instruction(line: str) -> Fragments | None:
    """The line in colours if it shows an instruction, else None."""
    found = _INSTRUCTION.fullmatch(line)
    if found is None:
        return None
    return [
        ("class:mark", found["mark"]),
        ("class:address", found["address"]),
        ("class:symbol", found["symbol"] or ""),
        ("", ":" + found["gap"]),
        *_code(found["code"]),
    ]


def _code(text: str) -> Fragments:
    from prompt_toolkit.styles.pygments import pygments_token_to_classname
    from pygments.lexers.asm import GasLexer, NasmLexer

    # AT&T's way of writing marks registers and constants; the other one is Intel's.
    lexer = GasLexer if "%" in text or "$" in text else NasmLexer
    tokens = lexer(stripnl=False, ensurenl=False).get_tokens(text)
    return [(f"class:{pygments_token_to_classname(kind)}", part) for kind, part in tokens]
