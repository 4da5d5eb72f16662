"""What the page's script draws from: numbers as deflated typed arrays in one JSON document.

A column is ``{"type", "data"}``: little-endian ``u1``, ``u2``, ``u4`` or ``f8``, zlib-compressed, in base64; with
``"delta"`` each value is the difference from the one before.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gdbext.arch import vectors
from gdbext.errors import printable
from gdbext.report.gather import CATEGORIES, Gatherer, Lane, category
from gdbext.report.timeline import RESUMED
from gdbext.rules.finding import Finding
from gdbext.rules.parity import UNKNOWN

NAMED: Final = 50_000
"""Interrupted places whose names are carried at most."""
_SIZES: Final = (("u1", 1 << 8), ("u2", 1 << 16), ("u4", 1 << 32))
_NO_VECTOR: Final = 0xFFFE
"""In place of RESUMED, so that the column stays unsigned."""

Symbol = Callable[[int], str | None]


def payload(gathered: Gatherer, findings: list[Finding], symbol: Symbol) -> str:
    """The JSON document, safe inside a ``<script>`` element."""
    lanes = gathered.lanes()
    used = np.unique(np.concatenate([lane.handlers["vector"] for lane in lanes.values()] or [np.zeros(0, np.int64)]))
    document = {
        "span": gathered.span,
        "binWidth": gathered.bin_width,
        "gaps": gathered.gaps,
        "categories": CATEGORIES,
        "vectors": {_unsigned(number): _vector(number) for number in used.tolist()},
        "cpus": [_lane(cpu, lane, symbol) for cpu, lane in lanes.items()],
        "findings": [_marker(number, finding, gathered.start) for number, finding in enumerate(findings, 1)],
    }
    return embeddable(document)


def embeddable(document: Any) -> str:
    """JSON in which nothing can end or comment out the ``<script>`` element around it."""
    text = json.dumps(document, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def column(values: npt.NDArray[Any], delta: bool = False) -> dict[str, Any]:
    """One column, in the smallest type that holds it; `values` are not negative, with `delta` not falling."""
    stored = np.diff(values, prepend=values.dtype.type(0)) if delta and len(values) else values
    top = int(stored.max()) if len(stored) else 0
    kind = next((name for name, limit in _SIZES if top < limit), "f8")
    raw = np.ascontiguousarray(stored, dtype=f"<{kind}").tobytes()
    data = base64.b64encode(zlib.compress(raw, 6)).decode()
    return {"type": kind, "data": data} | ({"delta": True} if delta else {})


def _lane(cpu: int, lane: Lane, symbol: Symbol) -> dict[str, Any]:
    handlers, gs, windows = lane.handlers, lane.gs, lane.windows
    places, place = np.unique(handlers["rip"], return_inverse=True)
    names: dict[str, int] = {}
    named = [_index(names, symbol(address)) for address in places[:NAMED].tolist()]
    vector = np.where(handlers["vector"] == RESUMED, _NO_VECTOR, handlers["vector"])
    return {
        "cpu": cpu,
        "start": column(handlers["start"], delta=True),
        "length": column(handlers["end"] - handlers["start"]),
        "depth": column(handlers["depth"]),
        "vector": column(vector),
        "event": column(handlers["event"].clip(0)),
        "until": column(handlers["until"].clip(0)),
        "place": column(place.reshape(-1)),
        "low": column(places & np.uint64(0xFFFFFFFF)),
        "high": column(places >> np.uint64(32)),
        "named": column(np.array(named, np.int64)),
        "names": list(names),
        "gsStart": column(gs["start"], delta=True),
        "gsLength": column(gs["end"] - gs["start"]),
        "gsState": column(gs["state"] - UNKNOWN),
        "windowStart": column(windows["start"], delta=True),
        "windowLength": column(windows["end"] - windows["start"]),
        "bins": [column(row) for row in lane.bins],
    }


def _index(names: dict[str, int], name: str | None) -> int:
    """1 + the place of `name` among `names`, 0 for none."""
    return names.setdefault(printable(name), len(names)) + 1 if name else 0


def _unsigned(vector: int) -> int:
    return _NO_VECTOR if vector == RESUMED else vector


def _vector(vector: int) -> list[Any]:
    name = "kernel code resumed" if vector == RESUMED else vectors.name(vector)
    return [name, category(vector)]


def _marker(number: int, finding: Finding, start: int) -> dict[str, Any]:
    time = int(finding.row["time"][0]) - start if finding.row is not None else 0
    return {
        "id": number,
        "time": max(time, 0),
        "cpu": finding.cpu,
        "event": finding.event,
        "severity": finding.severity,
        "title": f"{finding.code} {finding.name}",
    }
