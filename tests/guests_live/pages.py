"""The pages of the finding codes show what a bundled guest's run shows; a run that a test makes anyhow is held
against them."""

from __future__ import annotations

import os
import re
from typing import Final

from gdbext.qemu.guests import Guest
from gdbext.report.pages import PAGES
from tests.gdb.transcript import generic

REFRESH: Final = "CTXWATCH_REFRESH_DOCS"
_SHOWN: Final = re.compile(r"\n```\n\$ ctxwatch run ([\w-]+)\n(.*?)```\n", re.DOTALL)
_REGISTERS: Final = re.compile(
    r"\b(?:[er]?(?:[abcd]x|[sd]i|[bs]p)|[er]ip|r\d+|xmm\d+)\b(?:, (?:[er]?[a-ds][xip]|[er]bp|r\d+|xmm\d+)\b)*",
    re.IGNORECASE,
)


def stale(guest: Guest, said: str) -> list[str]:
    """What the pages show of `guest` and its run did not say, in any order; ``…`` stands for anything. With the
    environment's word such a part, or the whole of what a page does not show yet, is put there anew."""
    flat = _flat(said)
    gone = []
    for code in guest.codes:
        path = PAGES / f"{code}.md"
        text = path.read_text("utf-8")
        shown = _SHOWN.search(text)
        if f"`{guest.name}`" not in text or (shown is not None and shown[1] != guest.name):
            continue
        parts = re.split(r"…|\n", shown[2]) if shown is not None else []
        lost = [part for part in parts if _flat(part) not in flat]
        if os.environ.get(REFRESH) and (lost or shown is None):
            block = f"\n```\n$ ctxwatch run {guest.name}\n{excerpt(code, said)}```\n"
            path.write_text(text.replace(shown[0], block) if shown is not None else text + block, "utf-8")
        else:
            gone += [f"{path.name}: {part}" for part in lost]
    return gone


def excerpt(code: str, said: str) -> str:
    """What is worth showing of the first finding of `code`: its head, what differs, the cause in short."""
    begin = re.search(rf"^{code} \S+  event .*$", said, re.MULTILINE)
    assert begin is not None, f"no {code} in it"
    found = said[begin.start() :].split("\n\nCW", 1)[0].splitlines()
    differs = [line.rstrip() for line in found if re.match(r"  ▶  [a-z]\w* +\S+  +\S", line)]
    start = next(n for n, line in enumerate(found) if line.startswith("  cause "))
    end = next(n for n, line in enumerate(found) if line.startswith("  look at "))
    cause = " ".join(line.strip() for line in found[start:end]).removeprefix("cause").strip()
    short = re.split(r"(?<=[^.\d])(?=[.:;] | \()", cause, maxsplit=1)[0]
    head = re.sub(r"(CPU \d+).*", r"\1 …", found[0])
    return "\n".join([head, *differs[:1], *(["  …"] if differs[1:] else ()), f"  cause  {short} …"]) + "\n"


def _flat(text: str) -> str:
    """In one line, and without what differs from run to run, as which register it was."""
    return _REGISTERS.sub("REGISTER", generic(" ".join(text.split())))
