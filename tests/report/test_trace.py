"""The exported trace is what the Trace Event Format says (JSON object form), and holds windows and findings."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from typing import Any, Final

import pytest

from gdbext.cli.main import main
from tests.recording.sessions import busy
from tests.report import pages

REQUIRED: Final[dict[str, dict[str, type | tuple[type, ...]]]] = {
    "M": {"ph": str, "pid": int, "tid": int, "name": str, "args": dict},
    "X": {"ph": str, "pid": int, "tid": int, "name": str, "ts": (int, float), "dur": (int, float)},
    "i": {"ph": str, "pid": int, "tid": int, "name": str, "ts": (int, float), "s": str},
}
"""Fields that each phase must have."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The document of a hostile guest's session, and its findings' codes."""
    directory = tmp_path_factory.mktemp("trace")
    codes = pages.record(directory / "r", busy(300))
    assert main(["export", str(directory / "r"), "--format", "perfetto", "-o", str(directory / "t.json.gz")]) == 0
    document: dict[str, Any] = json.loads(gzip.decompress((directory / "t.json.gz").read_bytes()))
    return document, codes


def test_every_event_is_one_that_viewers_know(trace: tuple[dict[str, Any], list[str]]) -> None:
    document, _ = trace
    assert document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        for name, kind in REQUIRED[event["ph"]].items():
            assert isinstance(event[name], kind), event
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
        assert event.get("s", "t") == "t"
        assert isinstance(event.get("args", {}), dict)


def test_every_track_has_a_name_and_an_order(trace: tuple[dict[str, Any], list[str]]) -> None:
    events = trace[0]["traceEvents"]
    named: dict[str, dict[int, Any]] = defaultdict(dict)
    for event in events:
        if event["ph"] == "M":
            named[event["name"]][event["tid"]] = event["args"]
    used = {event["tid"] for event in events if event["ph"] != "M"}
    assert used <= named["thread_name"].keys()
    assert used <= named["thread_sort_index"].keys()
    assert len({args["name"] for args in named["thread_name"].values()}) == len(named["thread_name"])
    assert [args["name"] for args in named["process_name"].values()]


def test_slices_of_a_track_nest_or_follow_each_other(trace: tuple[dict[str, Any], list[str]]) -> None:
    """Viewers drop what overlaps otherwise: each begin would lack its end."""
    tracks: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in trace[0]["traceEvents"]:
        if event["ph"] == "X":
            start, length = (round(event[name] * 1000) for name in ("ts", "dur"))
            tracks[event["tid"]].append((start, start + length))
    deepest = 0
    for slices in tracks.values():
        around: list[int] = []
        for start, end in sorted(slices, key=lambda one: (one[0], -one[1])):
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1]
            around.append(end)
            deepest = max(deepest, len(around))
    assert deepest > 1


def test_windows_and_findings_are_in_it(trace: tuple[dict[str, Any], list[str]]) -> None:
    document, codes = trace
    events = document["traceEvents"]
    assert [event["name"].split()[0] for event in events if event["ph"] == "i"] == codes
    handlers: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["tid"] % 10 == 0:
            handlers[event["tid"] // 10].append((event["ts"], event["ts"] + event["dur"]))
    windows = [event for event in events if event["ph"] == "X" and event["tid"] % 10 == 2]
    assert windows
    for window in windows:  # kernel code on the user's GS base runs inside a handler
        start, end = window["ts"], window["ts"] + window["dur"]
        assert any(a - 1e-6 <= start and end <= b + 1e-6 for a, b in handlers[window["tid"] // 10])


def test_strings_of_the_guest_are_strings(trace: tuple[dict[str, Any], list[str]]) -> None:
    text = json.dumps(trace[0], ensure_ascii=False)
    assert "owned" in text
    assert all(character.isprintable() for character in text)
