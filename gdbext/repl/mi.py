"""GDB's machine interface (GDB manual, "GDB/MI"): what we write, and records out of what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """One line of GDB. ``kind``: result, notify, console, log, target, output or done (its prompt).

    name: the class of a result or notification (``done``, ``stopped``).  text: of a stream.  data: of a result or
    notification.  token: of the command that a result answers.
    """

    kind: str
    name: str = ""
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    token: int | None = None


def parse(line: str) -> Record:
    """The record in one line; what is none is text of kind ``output``."""
    from pygdbmi.gdbmiparser import parse_response

    try:
        found = parse_response(line)
    except Exception:  # the parser raises what it happens to meet; a broken line is shown as it came
        return Record("output", text=line)
    payload = found.get("payload")
    return Record(
        kind=str(found.get("type")),
        name=str(found.get("message") or ""),
        text=payload if isinstance(payload, str) else "",
        data=payload if isinstance(payload, dict) else {},
        token=found.get("token"),
    )


def quoted(text: str) -> str:
    """`text` as a C string of the machine interface."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def console(command: str) -> str:
    """The machine-interface command that runs `command` as if it was typed."""
    return f"-interpreter-exec console {quoted(command)}"
