"""Pages for the tests: a session with findings on two CPUs whose every string is hostile."""

from __future__ import annotations

import base64
import html as entities
import json
import re
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gdbext.cli.main import main
from gdbext.events.row import Batch
from gdbext.recording.writer import Recorder
from gdbext.rules.engine import Engine
from tests.recording.sessions import FakeGuest, busy, cuts, header

HOSTILE: Final = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)><!--\x1b[2J\u202e'\"&amp;"


class HostileGuest(FakeGuest):
    """Its names would take over a page that lets them."""

    def symbol(self, address: int) -> str | None:
        return f"{HOSTILE}{address:x}"


def record(path: Path, rows: Batch) -> list[str]:
    """Record a session; returns the codes of its findings in order."""
    about = header(guest=f"guest {HOSTILE}", identity={"command": HOSTILE}, profile=HOSTILE)
    with Recorder(path, about, HostileGuest(), print) as recorder:
        engine = Engine(about.policy, guest=recorder.guest)
        for part in cuts(rows, 100):
            engine.feed(part)
            recorder.write(part)
        assert recorder.close({"events": {"lost": 0}, "seconds": 2.5})
    return [finding.code for finding in engine.findings]


def make(directory: Path, rows: Batch | None = None) -> tuple[Path, list[str]]:
    """The page of such a session, and its findings' codes."""
    recording, out = directory / "session.arrow", directory / "session.html"
    codes = record(recording, busy(300) if rows is None else rows)
    assert main(["report", str(recording), "-o", str(out)]) == 0
    return out, codes


def data(text: str) -> dict[str, Any]:
    """The page's JSON document, its columns decoded."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    document: dict[str, Any] = _decoded(json.loads(found[1]))
    return document


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return column(value) if "data" in value else {name: _decoded(part) for name, part in value.items()}
    return [_decoded(part) for part in value] if isinstance(value, list) else value


def column(stored: dict[str, Any]) -> npt.NDArray[Any]:
    """The numbers of a column."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(stored["data"])), f"<{stored['type']}")
    return np.cumsum(values, dtype=np.float64) if stored.get("delta") else values


def words(text: str) -> str:
    """What a person reads: the page without its markup."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    return entities.unescape(re.sub(r"<[^>]*>", " ", body))
