"""What a recording cannot do of what a debugger can, refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gdbext.errors import NotCapable, UsageError

_MOVES: Final = re.compile(
    r"(?:c|cont(?:i(?:n(?:ue?)?)?)?|fg|s|step|n|next|si|stepi|ni|nexti|u|until|adv|advance|fin|finish|j|jump|r|run"
    r"|start|starti|signal|rc|rs|rn|rsi|rni|reverse-\w+|ctx\s+skip)(?![\w-])"
)
_STOPS: Final = re.compile(r"(?:h?br?e?a?k?|tb(?:r\w*)?|thb(?:r\w*)?|hb(?:r\w*)?|a?r?watch|cat(?:ch)?)(?![\w-])")


def moves(line: str) -> bool:
    """The guest runs after this command of GDB's: what is typed behind it is meant for where it stops."""
    return bool(_MOVES.match(line.strip()))


def these(cpus: Sequence[int], wanted: int | None) -> Sequence[int]:
    """Those of `cpus` that were asked for: all, or the one `wanted`. Raises UsageError where there is no such one."""
    if wanted is None:
        return cpus
    if wanted not in cpus:
        known = f"there are {', '.join(map(str, cpus))}" if cpus else "no event was seen yet"
        raise UsageError(f"ctx gs: there is no CPU {wanted}", known)
    return [wanted]


def refusal(line: str) -> NotCapable:
    """Why a recording cannot do `line`, and what to do instead."""
    name = " ".join(line.split()[:2]) if line.startswith(("ctx ", "info ", "i ")) else line.split()[0]
    if moves(line):
        return NotCapable(
            f"{name}: a recording cannot run",
            "its guest ran before",
            "goto, next-finding, next-event and prev move in it",
        )
    if _STOPS.match(line):
        return NotCapable(f"{name}: a recording cannot stop anywhere", "its guest ran before", "goto EVENT moves in it")
    if name == "report":
        return NotCapable(
            "report: not at this prompt", "it makes a page of all of it", "ctxwatch report does, in a shell"
        )
    return NotCapable(
        f"{name}: not in a recording",
        "it holds events and what was captured with them",
        "status, info registers, areas, gs, print and x are",
    )
