"""The results as lines and as the table of the documentation. Takes the JSON documents of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from gdbext.errors import printable

Document = dict[str, Any]
_ORDER: Final = ("found", "found otherwise", "missed", "no effect", "not healthy", "not applicable")
_SAID: Final = 160


def line(result: Document) -> str:
    """One injection in one line."""
    parts = [f"{result['guest']} {result['fault']}: {result['verdict']}"]
    if "changed" in result:
        parts.append(f"{_place(result)}: {_change(result)}; expected {result['expected']}")
    if "found" in result:
        found = result["found"]
        parts.append(f"{found['code']} {found['field'] or ''} after {result['events_until_found']} events")
        if result["verdict"] != "found":
            parts.append(found["cause"][:_SAID])
    if result["says"] and result["verdict"] != "found":
        parts.append(result["says"][:_SAID])
    return printable(" | ".join(parts))


def _place(result: Document) -> str:
    changed = result["changed"]
    return str(changed["symbol"] or changed["address"])


def _change(result: Document) -> str:
    changed = result["changed"]
    return f"{_shown(changed['before'])} → {_shown(changed['after'])}"


def _shown(instructions: Sequence[str]) -> str:
    parts: list[str] = []
    for text in instructions:
        if parts and parts[-1].split(" ×")[0] == text:
            count = int(parts[-1].split(" ×")[1]) if " ×" in parts[-1] else 1
            parts[-1] = f"{text} ×{count + 1}"
        else:
            parts.append(text)
    return "; ".join(parts)


def summary(results: Sequence[Document]) -> dict[str, int]:
    """How many came out how."""
    counts = Counter(result["verdict"] for result in results)
    return {verdict: counts[verdict] for verdict in _ORDER if counts[verdict]}


def told(results: Sequence[Document]) -> str:
    """The summary for a person."""
    return ", ".join(f"{count} {verdict}" for verdict, count in summary(results).items()) or "nothing was done"


def markdown(documents: Sequence[Document]) -> str:
    """The tables: totals by guest, every injection, and those that were not found."""
    latest: dict[tuple[str, str], Document] = {}
    for document in documents:
        latest.update({(result["guest"], result["fault"]): result for result in document["injections"]})
    results = [result for result in latest.values() if result["verdict"] != "not applicable"]
    guests = list(dict.fromkeys(result["guest"] for result in results))
    lines = ["| guest | injections | found | found otherwise | missed | no effect |", "|---|---|---|---|---|---|"]
    for guest in [*guests, "all"]:
        counts = Counter(r["verdict"] for r in results if guest in (r["guest"], "all") and r["verdict"] in _ORDER[:4])
        lines.append(f"| {guest} | {counts.total()} | " + " | ".join(str(counts[v]) for v in _ORDER[:4]) + " |")
    for guest in guests:
        lines += [
            "",
            f"### {guest}",
            "",
            "| fault | changed | expected | found | events later |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(result) for result in results if result["guest"] == guest and "changed" in result]
    return "\n".join(lines)


def _row(result: Document) -> str:
    found = result.get("found")
    said = f"{found['code']} {found['field'] or ''}".strip() if found else f"{result['verdict']}: {result['says'][:80]}"
    if result["verdict"] == "found otherwise":
        said = f"otherwise: {said}"
    later = str(result["events_until_found"]) if found else ""
    cells = (result["fault"], f"`{_place(result)}`: `{_change(result)}`", result["expected"], said, later)
    return "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in cells) + " |"
