"""What README and docs tell a reader to type, follow or run is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from gdbext.cli.command import discover

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests" / "guests" / "README.md"]
_TYPED: Final = re.compile(r"(?:^ {4}|^|`|\$\(|\$ )ctxwatch ([a-z][\w-]*)([^`\n]*)", re.MULTILINE)
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_IN_GDB: Final = re.compile(r"(?:`|\((?:gdb|ctx)\) )ctx ([a-z][\w-]*)")
_STATES: Final = {"running", "connecting", "dead", "window", "event"}
"""Of the REPL's prompt, which looks like a command."""


def wrong(text: str) -> Iterator[str]:
    """What `text` names of ours and is not there."""
    options = {command.name: {name for one in command.arguments for name in one.names} for command in discover()}
    for name, words in _TYPED.findall(text):
        if name not in options:
            yield f"ctxwatch {name}"
        else:
            said = _OPTION.findall(words.split(" -- ")[0])
            yield from (f"ctxwatch {name} {option}" for option in said if option not in {"--help", *options[name]})
    in_gdb = {path.stem.replace("_", "-") for path in (ROOT / "gdbext" / "gdb" / "commands").glob("[a-z]*.py")}
    yield from (f"ctx {name}" for name in _IN_GDB.findall(text) if name not in in_gdb | _STATES)
    yield from (path for path in re.findall(r"\bscripts/[\w-]+", text) if not (ROOT / path).exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    assert list(wrong(text)) == []
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_what_is_not_there_is_seen() -> None:
    text = "`ctxwatch walk x`\n    ctxwatch run a --fast -- qemu --smp\n(gdb) ctx hide\n`ctx watch`, (ctx running)\n"
    text += "scripts/none\n"
    assert list(wrong(text)) == ["ctxwatch walk", "ctxwatch run --fast", "ctx hide", "scripts/none"]


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "codes").glob("*.md")), ids=lambda page: str(page.stem))
def test_a_code_is_shown_by_a_guest_that_its_page_names(page: Path) -> None:
    """What is shown of it is held against the guest's run in tests/guests_live."""
    named = re.findall(r"`([\w-]+)`", page.read_text("utf-8").partition("Bundled guests: ")[2].partition("\n")[0])
    shown = re.findall(r"^\$ ctxwatch run ([\w-]+)\n(CW\d+) ", page.read_text("utf-8"), re.MULTILINE)
    assert bool(named) == bool(shown)
    assert all(guest in named and code == page.stem for guest, code in shown)
