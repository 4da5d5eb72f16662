"""The pages of the finding codes (docs/codes/CODE.md)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

from gdbext.errors import UsageError
from gdbext.rules.codes import CODES

PAGES: Final = Path(__file__).parents[2] / "docs" / "codes"


def index() -> list[str]:
    """One line a code: number, name, what it says."""
    return [f"{code.code}  {code.name:<22} {code.says}" for code in CODES.values()]


def page(code: str) -> str:
    """The page of `code`, or of the code of that name, as Markdown; its one-line meaning where the pages are not
    installed.

    Raises UsageError for an unknown code.
    """
    names = {known.name: known.code for known in CODES.values()}
    wanted = names.get(code.lower(), code.upper())
    if wanted not in CODES:
        near = difflib.get_close_matches(wanted, CODES, n=2) or difflib.get_close_matches(code.lower(), names, n=1)
        todo = f"did you mean {' or '.join(near)}?" if near else "`ctxwatch explain` lists them"
        raise UsageError(f"there is no finding code {code!r}", todo=todo)
    path = PAGES / f"{wanted}.md"
    if path.is_file():
        return path.read_text("utf-8")
    return f"# {wanted} {CODES[wanted].name}\n\n{CODES[wanted].says}\n"
