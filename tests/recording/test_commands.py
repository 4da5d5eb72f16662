"""``ctxwatch replay`` and ``ctxwatch export`` as a person types them."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gdbext.cli.main import main
from gdbext.recording.header import Header
from gdbext.recording.reader import Recording
from gdbext.recording.writer import Recorder
from gdbext.report.document import QemuFacts, RunReport
from gdbext.rules.engine import Engine
from tests.recording.sessions import FakeGuest, busy, cuts, header, record
from tests.rules.rows import Kind, batch, context, entry, exit_, stamp


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recording, and the report of the live run."""
    path = tmp_path_factory.mktemp("session") / "session.arrow"
    with Recorder(path, header(), FakeGuest(), print) as recorder:
        engine = Engine(guest=recorder.guest)
        for part in cuts(busy(300), 100):
            engine.feed(part)
            recorder.write(part)
        about = recorder_report(engine, header())
        recorder.close(about)
    return path, about


def recorder_report(engine: Engine, about: Header) -> dict[str, Any]:
    qemu = about.qemu
    assert qemu is not None
    report = RunReport(about.guest, about.source, QemuFacts(**qemu), engine.counts, 3, 2.5, engine.findings)
    return report.document()


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_document_is_the_live_runs(
    session: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, live = session
    status, out, err = run(capsys, "replay", path, "--json", "-")
    assert (status, err) == (1, "")
    assert out == json.dumps(live, indent=2) + "\n"
    assert run(capsys, "export", path, "--format", "parquet", "-o", tmp_path / "p")[0] == 0
    assert run(capsys, "replay", tmp_path / "p", "--json", "-") == (1, out, "")
    assert run(capsys, "replay", path, "--json", tmp_path / "out.json")[0] == 1
    assert (tmp_path / "out.json").read_text() == out


def test_findings_are_shown_and_strings_of_the_guest_do_nothing(
    session: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "replay", session[0])
    assert status == 1
    assert "CW101 register-not-restored" in out
    assert "\x1b" not in out


def test_rules_and_number_of_findings_can_be_chosen(
    session: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "replay", session[0], "--json", "-", "--rules", "CW102")
    assert {finding["code"] for finding in json.loads(out)["findings"]} == {"CW102"}
    _, out, _ = run(capsys, "replay", session[0], "--json", "-", "--max-findings", "1")
    assert json.loads(out)["findings"]


def test_another_profile_can_be_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctx = context(rflags=0x3246)
    record(tmp_path / "r", stamp(batch(entry(ctx), exit_(ctx | {"rflags": 0x3246}), exit_(context(3, rflags=0x3246)))))
    assert run(capsys, "replay", tmp_path / "r", "--json", "-")[0] == 1
    profile = tmp_path / "p.toml"
    profile.write_text('name = "own"\ntitle = "own"\nsources = ["none"]\n[policy]\nuser_iopl = true\n')
    status, out, err = run(capsys, "replay", tmp_path / "r", "--json", "-", "--profile", profile)
    assert (status, json.loads(out)["findings"] if out else err) == (0, [])


def test_a_clean_recording_that_is_not_whole_is_not_called_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "r", busy(100, bugs=False))
    assert run(capsys, "replay", tmp_path / "r")[0] == 0
    data = (tmp_path / "r").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-1000])
    status, out, err = run(capsys, "replay", tmp_path / "cut")
    assert status == 2
    assert "nothing found in the part that could be read" in out
    assert re.fullmatch(r"ctxwatch: .*cut is not whole: it is cut off at byte \d+.*\n", err)
    status, out, _ = run(capsys, "replay", tmp_path / "cut", "--json", "-")
    assert (status, "cut off" in json.loads(out)["incomplete"]) == (2, True)
    assert json.loads(out)["seconds"] > 0, "that of its events, where nothing tells how long the run was"
    status, _, err = run(capsys, "export", tmp_path / "cut", "--format", "csv")
    assert status == 2
    assert "is not whole" in err
    assert (tmp_path / "cut.csv").exists()


def test_a_recording_of_a_run_that_lost_events_is_not_called_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "r", busy(100, bugs=False), lost=2)
    status, out, err = run(capsys, "replay", tmp_path / "r", "--json", tmp_path / "out")
    assert (status, json.loads((tmp_path / "out").read_text())["events"]["lost"]) == (3, 2)
    assert "nothing found, but 2 events were lost" in out
    assert err == "ctxwatch: 2 events were lost: what was interrupted or resumed there was not checked\n"


def test_bad_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    for name in ("text", "pipe", "none", "."):
        for words in (["replay"], ["export", "--format", "csv"]):
            status, out, err = run(capsys, *words, tmp_path / name)
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert "cannot be read" in err


def test_outputs_that_cannot_be_written(
    session: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = session[0]
    before = path.read_bytes()
    for name in (path, tmp_path, tmp_path / "none" / "x", "-"):
        status, _, err = run(capsys, "export", path, "--format", "csv", "-o", name)
        assert (status, err.count("\n")) == (2, 1)
    assert run(capsys, "replay", path, "--json", tmp_path / "none" / "x")[0] == 2
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_bytes_that_are_no_text_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"\xff.arrow")
    record(path, busy(20, bugs=False))
    forms = ("csv", "parquet", "perfetto")
    assert [run(capsys, "export", path, "--format", form)[::2] for form in forms] == 3 * [(0, "")]
    assert run(capsys, "replay", path.with_name(f"{path.name}.parquet"), "--json", tmp_path / "\udcfe")[0] == 0
    assert run(capsys, "report", path)[0] == 0
    assert len(list(tmp_path.iterdir())) == 6


def test_a_recording_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, link, twin = tmp_path / "r", tmp_path / "link", tmp_path / "twin"
    record(path, busy(10, bugs=False))
    data = path.read_bytes()
    link.symlink_to(path)
    twin.hardlink_to(path)
    for name in (path, link, twin):
        for words in (("replay", "--json"), ("report", "-o"), ("export", "--format", "csv", "-o")):
            status, _, err = run(capsys, words[0], path, *words[1:], name)
            assert (status, "it is the recording itself" in err) == (2, True)
    record(tmp_path / "x.partial", busy(10, bugs=False))  # what is written on the way to x
    assert run(capsys, "report", tmp_path / "x.partial", "-o", tmp_path / "x")[0] == 2
    assert (tmp_path / "x.partial").stat().st_size > 0
    (tmp_path / "x.partial").unlink()
    status, _, err = run(capsys, "run", "clean-nrk", "--record", tmp_path / "new", "--json", tmp_path / "new")
    assert (status, "it is the recording itself" in err) == (2, True)
    assert path.read_bytes() == data
    assert {found.name for found in tmp_path.iterdir()} == {"r", "link", "twin"}


def test_a_document_that_does_not_come_leaves_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_text("old")
    link.symlink_to(old)
    assert run(capsys, "run", "clean-nrk", "--profile", "nosuch", "--json", old)[0] == 2
    assert old.read_text() == "old"
    record(tmp_path / "r", busy(10, bugs=False))
    assert run(capsys, "replay", tmp_path / "r", "--json", link)[0] == 0
    assert link.is_symlink()
    assert json.loads(old.read_text())["findings"] == []
    assert {found.name for found in tmp_path.iterdir()} == {"old", "link", "r"}


def test_csv(session: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = session
    assert run(capsys, "export", path, "--format", "csv", "-o", tmp_path / "c")[0] == 0
    with Recording(path) as recording, (tmp_path / "c").open(newline="") as file:
        rows = [row for part in recording.batches() for row in part]
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (int(line["seq"]), int(line["cpu"]), line["kind"]) == (
            row["seq"],
            row["cpu"],
            Kind.NAMES[int(row["kind"])],
        )
        assert (line["rip"], line["stack7"]) == (f"{row['rip']:#018x}", f"{row['stack'][7]:#018x}")


def trace(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    found: list[dict[str, Any]] = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["traceEvents"]
    return found


def test_trace(session: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, live = session
    assert run(capsys, "export", path, "--format", "perfetto", "-o", tmp_path / "t.json.gz")[0] == 0
    events = trace(tmp_path / "t.json.gz")
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names >= {"CPU 0", "CPU 0 GS base", "CPU 0 windows", "CPU 1"}
    slices = [event for event in events if event["ph"] == "X" and event["tid"] % 10 == 0]
    assert {event["name"] for event in slices} >= {"syscall", "interrupt 0x20", "#PF page fault"}
    assert len(slices) == sum(live["events"][name] for name in ("entries",))
    markers = [event for event in events if event["ph"] == "i"]
    assert [event["name"].split()[0] for event in markers] == [f["code"] for f in live["findings"]]
    assert {event["name"] for event in events if event["ph"] == "X" and event["tid"] % 10 == 1} == {
        "kernel GS",
        "user GS",
    }
    assert [event for event in events if event["tid"] % 10 == 2 and event["ph"] == "X"]


def test_slices_nest_on_each_track(
    session: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "export", session[0], "--format", "perfetto", "-o", tmp_path / "t")
    tracks: dict[int, list[tuple[float, float]]] = {}
    for event in trace(tmp_path / "t"):
        if event["ph"] == "X":
            tracks.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert tracks
    for spans in tracks.values():
        stack: list[float] = []
        for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while stack and stack[-1] <= start + 1e-6:
                stack.pop()
            assert not stack or end <= stack[-1] + 1e-6
            stack.append(end)
