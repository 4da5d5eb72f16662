"""docs/repl.md is as the declarations are, and its transcripts are what the REPL shows."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from gdbext.repl import declare
from gdbext.repl.session import COMMANDS, Session
from tests.repl.fakes import MemoryScreen

PAGE = Path(__file__).parents[2] / "docs" / "repl.md"
REFRESH = "CTXWATCH_REFRESH_DOCS"
BEGIN = f"<!-- commands: made from the declarations by {REFRESH}=1 python -m pytest tests/repl/test_docs.py -->\n"
END = "<!-- end of commands -->\n"


def table() -> str:
    """The commands as the page lists them."""
    commands = {command.name: command for command in declare.discover(COMMANDS).values()}
    lines = ["| command | what it does |", "|---|---|"]
    for command in sorted(commands.values(), key=lambda command: command.name):
        usage = command.help().splitlines()[1].removeprefix("Usage: ").replace("|", "\\|")
        also = f" (also {', '.join(f'`{alias}`' for alias in command.aliases)})" if command.aliases else ""
        lines.append(f"| `{usage}` | {command.summary}{also} |")
    return "\n".join(lines) + "\n"


def test_the_commands_are_those_declared() -> None:
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    made, after = rest.split(END)
    if os.environ.get(REFRESH):
        PAGE.write_text(before + BEGIN + table() + END + after, "utf-8")
        return
    assert made == table(), f"docs/repl.md is stale: {REFRESH}=1 python -m pytest tests/repl/test_docs.py renews it"


def transcripts() -> list[list[str]]:
    """The page's blocks of a session, line by line."""
    return [block.splitlines() for block in re.findall(r"```\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]


def generic(line: str) -> str:
    """The line without what differs from run to run: numbers, names of places, what interrupted."""
    line = re.sub(r"[\w.]+\+0x[0-9a-f]+", "PLACE", line)
    line = re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "N", line)
    line = re.sub(r"(CW\w+ .*event N, CPU N).*", r"\1…", line)  # which interrupt is the first to lose flags
    return re.sub(r"(interrupted ).*", r"\1…", line).rstrip(" …")


@pytest.mark.guest
@pytest.mark.gdb
def test_the_live_transcript_is_what_is_shown() -> None:
    block = transcripts()[0]
    typed = [line.removeprefix("(ctx) ") for line in block if line.startswith("(ctx) ")]
    screen = MemoryScreen()

    async def run() -> None:
        session = Session(screen)
        try:
            for line in ("boot nrk-rflags", *typed):
                await session.run(line)
                await session.live.stopped()
                await asyncio.sleep(0.3)
        finally:
            await session.close()

    asyncio.run(run())
    shown = {generic(re.sub(r"\x1b\[[0-9;]*m", "", part)) for _, text in screen.lines for part in text.split("\n")}
    shown |= {generic(f"  │ {text}") for text in screen.of("serial")}
    expected = [line for line in block[1:] if line.strip(" …") and not line.startswith(("(ctx)", " stopped"))]
    assert len(expected) >= 6
    for line in expected:
        assert generic(line) in shown, f"{line!r} of docs/repl.md is not shown"
