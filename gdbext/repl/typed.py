"""What a line typed for GDB will do, as far as the REPL has to know."""

from __future__ import annotations

import re
from typing import Final

from gdbext.errors import UsageError

_CONTINUE: Final = re.compile(r"(?:c|cont(?:i(?:n(?:ue?)?)?)?|fg)(?:\s+\d+)?")
_REPEATS: Final = re.compile(
    r"(?:c|cont(?:i(?:n(?:ue?)?)?)?|s|step|n|next|si|stepi|ni|nexti|u|until|up|down|reverse-\w+)(?![\w-])"
)
_LISTS: Final = re.compile(r"(x|l|list)(?![\w-])")
_TARGET: Final = re.compile(r"tar(?:g(?:et?)?)?\s+(?:extended-)?rem(?:o(?:te?)?)?\s+(\S+)\s*")
_ENDS: Final = re.compile(r"(?:k|kill|r|run|start|starti|tar(?:g(?:et?)?)?\s+\S+)(?![\w-])")
_SHELL: Final = re.compile(r"(?:!|she(?:ll?)?(?![\w-]))\s*(.*)")
_DISASSEMBLES: Final = re.compile(
    r"disas(?:s(?:e(?:m(?:b(?:le?)?)?)?)?)?(?![\w-])|(?:x|disp(?:l(?:ay?)?)?)\s*/-?\d*[a-z]*i[a-z]*(?!\w)"
)
_LEAVES: Final = re.compile(r"(?:k|kill|disconnect|det|deta?|detac?|detach)(?![\w-])")


def background(line: str) -> str:
    """The same command so that GDB takes others meanwhile: ``continue`` goes to the background. Commands that end by
    themselves do not, and neither does what GDB may hand to a hook with arguments."""
    line = line.strip()
    return f"{line} &" if _CONTINUE.fullmatch(line) else line


def harmless(line: str) -> str:
    """The same command so that a program it starts does not read GDB's input, which is where commands come from.

    Raises UsageError for a shell that would do nothing but read.
    """
    found = _SHELL.fullmatch(line.strip())
    if found is None:
        return line
    if not found[1]:
        raise UsageError("shell needs a command here", "there is no terminal for it")
    return f"shell ( {found[1]} ) < /dev/null"


def again(line: str) -> str:
    """What an empty line after `line` runs, as in GDB: the same; a listing goes on where it ended; "" for nothing."""
    line = line.strip()
    listing = _LISTS.match(line)
    if listing:
        return listing[1]
    return line if _REPEATS.match(line) else ""


def target(line: str) -> str | None:
    """The address if it is a ``target remote ADDRESS``."""
    found = _TARGET.fullmatch(line.strip())
    return found[1] if found else None


def ends_guest(line: str) -> bool:
    """GDB would end the guest for it: it asks first where it has a terminal, and takes a yes for granted elsewhere."""
    return bool(_ENDS.match(line.strip()))


def needs_rest(line: str) -> bool:
    """GDB (13 at least) ends itself, by an error that nobody catches, where the guest runs meanwhile."""
    return bool(_DISASSEMBLES.match(line.strip()))


def leaves(line: str) -> bool:
    """The connection ends because the user wants it."""
    return bool(_LEAVES.match(line.strip()))
