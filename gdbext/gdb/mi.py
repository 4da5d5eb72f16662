"""What a front end asks through the machine interface: ``-ctx-state`` and ``-ctx-findings``, answered at any moment.

They print nothing for a person and touch the guest only where it stands still; a GDB before 12 has no way of adding
such commands and goes without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import gdb

from gdbext.gdb import safetext, text
from gdbext.gdb.extension import Extension
from gdbext.gdb.functions import parity_name
from gdbext.gdb.target import Target
from gdbext.report.document import finding_document

Answer = dict[str, Any]

_NARROWEST: Final = 40
_WIDEST: Final = 500


def state(extension: Extension) -> Answer:
    """What a status line shows. While the guest runs, the CPU and its GS are those of the last event.

    ``watching``: no, waiting (for an interrupt table), armed or failed; ``events``: entries, exits and swapgs seen;
    with the guest standing still also ``pc``, ``cpl`` and ``window``, the reason of the window it stands in or "".
    """
    watch, counts = extension.watch, extension.counts
    answer: Answer = {"watching": "no", "events": 0, "findings": 0}
    if watch is not None:
        answer["watching"] = "failed" if watch.failed is not None else "armed" if watch.armed else "waiting"
    if counts is not None:
        answer["events"] = counts.entries + counts.exits + counts.swapgs
        answer["findings"] = len(extension.findings)
    thread = gdb.selected_thread()
    if thread is None or not thread.is_valid():
        return answer
    cpu = Target.cpu()
    parity = watch.gs.parity(cpu) if watch is not None else None
    answer |= {"cpu": cpu, "parity": parity_name(parity)}
    if not thread.is_running():
        answer |= _place(extension)
    return answer


def _place(extension: Extension) -> Answer:
    try:
        cs = int(gdb.newest_frame().read_register("cs"))
    except (gdb.error, ValueError):
        return {}
    place = extension.windows.here()
    if place is None:
        return {}
    answer = {"pc": hex(place.pc), "cpl": cs & 3, "window": place.window.reason.value if place.window else ""}
    if place.window is not None:
        answer["half_switched"] = safetext.state(place)
    return answer


def findings(extension: Extension, columns: int = 0) -> Answer:
    """All findings so far: each the object of the JSON report, with ``lines``, the text ``ctx findings`` shows;
    ``watch``: a number that tells their watch from others of this GDB.

    columns: with a number, ``picture`` too: the finding as ``ctxwatch run`` draws it on a terminal so wide, in colour.
    """
    answers = []
    for finding in extension.findings:
        answer = _plain(finding_document(finding)) | {"lines": text.whole(finding)}
        if columns:
            answer["picture"] = text.drawn(finding, columns)
        answers.append(answer)
    return {"watch": extension.judging.number if extension.judging is not None else 0, "findings": answers}


def _plain(value: Any) -> Any:
    """Without the values that the machine interface cannot carry: what is not known is left out."""
    if isinstance(value, dict):
        return {name.replace("_", "-"): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def register_mi(extension: Extension) -> None:
    """Add the commands to this GDB if it can have such."""
    base = getattr(gdb, "MICommand", None)
    if base is None:
        return

    class Command(base):  # type: ignore[misc,valid-type]  # GDB's classes have no types, and an old GDB lacks this one
        def __init__(self, name: str, answer: Callable[[Sequence[str]], Answer]) -> None:
            super().__init__(name)
            self._answer = answer

        def invoke(self, argv: Sequence[str]) -> Answer:
            """Called by GDB."""
            return self._answer(argv)

    Command("-ctx-state", lambda argv: state(extension))
    Command("-ctx-findings", lambda argv: findings(extension, _columns(argv)))


def _columns(argv: Sequence[str]) -> int:
    if not argv:
        return 0
    if len(argv) > 1 or not argv[0].isdecimal() or not _NARROWEST <= int(argv[0]) <= _WIDEST:
        raise gdb.GdbError(f"-ctx-findings takes the columns of a terminal, {_NARROWEST} to {_WIDEST}")
    return int(argv[0])
