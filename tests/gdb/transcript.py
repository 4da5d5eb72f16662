"""Transcripts in the docs: what was typed, and whether what is shown is still what the page says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


README = DOCS.parent / "README.md"
_VECTOR = re.compile(r"#[A-Z]{2} [a-z ]+?(?=,| interrupted|$)|interrupt 0x[0-9a-f]+")
_FLAGS = re.compile(r"\((?:[A-Z]{2} ?)+\)")
_LOST = re.compile(r"\b[A-Z]{2} (?:lost|gained)(?:, [A-Z]{2} (?:lost|gained))*")


def indented(page: Path, prompt: str) -> list[str]:
    """The indented session at `prompt` in `page`, line by line, each line that is continued put together."""
    lines: list[str] = []
    inside = False
    for line in page.read_text("utf-8").splitlines():
        inside = line.startswith("    ") and (inside or line.strip().startswith(prompt))
        if inside and line.startswith(" " * 12):
            lines[-1] += " " + line.strip()
        elif inside:
            lines.append(line[4:])
    return lines


def blocks(page: str, prompt: str) -> list[list[str]]:
    """The fenced blocks of docs/`page` that hold a session at `prompt`, line by line."""
    found = re.findall(r"```\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return [block.splitlines() for block in found if prompt in block]


def typed(block: Iterable[str], prompt: str) -> list[str]:
    """The commands of a session."""
    return [line.removeprefix(prompt) for line in block if line.startswith(prompt)]


def generic(line: str) -> str:
    """The line without what differs from run to run: numbers, places, names of files."""
    line = re.sub(r"\x1b\[[0-9;]*m", "", line)
    for pattern, word in ((_VECTOR, "VECTOR"), (_FLAGS, "FLAGS"), (_LOST, "LOST"), (re.compile(r"(/[\w.~-]+)+/"), "")):
        line = pattern.sub(word, line)
    line = re.sub(r"<?\b[A-Za-z_][\w.]*\+(0x[0-9a-f]+|\d+)>?", "PLACE", line)
    line = re.sub(r"<[A-Za-z_][\w.]*>", "PLACE", line)
    line = re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", line)
    return " ".join(line.split())


def missing(block: Iterable[str], prompt: str, shown: str) -> list[str]:
    """The lines of a session that `shown` does not hold; ``…`` in a line stands for anything, a line of it alone for
    any lines. Their order is not held: refusals come by another stream."""
    lines = [generic(line) for line in shown.splitlines()]
    gone = []
    for line in block:
        if line.startswith(prompt) or not line.strip(" …"):
            continue
        pattern = ".*".join(re.escape(generic(part)) for part in line.split("…")).replace("PLACE", r"(PLACE|\w+)")
        if not any(re.fullmatch(pattern, one) for one in lines):
            gone.append(line)
    return gone
