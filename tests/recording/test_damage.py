"""Damaged and foreign files: one clear line, never a traceback, never a verdict that looks whole."""

from __future__ import annotations

import gc
import json
import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdbext.cli.main import main
from gdbext.errors import RecordingError
from gdbext.events.row import ROW, SCHEMA_VERSION, Batch
from gdbext.recording import header as headers
from gdbext.recording import mark as marks
from gdbext.recording import parquet, writer
from gdbext.recording.framing import frame_at
from gdbext.recording.reader import Recording
from gdbext.sources import ring
from tests.recording.sessions import busy, header, record, replayed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished recording of several batches."""
    path = tmp_path_factory.mktemp("recordings") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "ROWS", 128)
        record(path, busy(150), size=100)
    return path


@pytest.fixture(scope="module")
def as_parquet(whole: Path) -> Path:
    """The same as Parquet."""
    path = whole.with_name("whole.parquet")
    with Recording(whole) as recording, path.open("wb") as file:
        out = parquet.ParquetWriter(file, recording.header, recording.simd)
        for rows, mark in recording.units():
            out.write(rows, mark)
        out.close(recording.end)
    return path


def outcome(path: Path, data: bytes) -> str | None:
    """Write `data` to `path` and read it: the refusal or flaw, or None for a recording taken as whole."""
    path.write_bytes(data)
    try:
        with Recording(path) as recording:
            for _ in recording.batches():
                pass
            flaw = recording.flaw
    except RecordingError as error:
        flaw = str(error)
    if flaw is not None:
        assert flaw
        assert "\n" not in flaw
    return flaw


def test_parquet_replays_the_same(whole: Path, as_parquet: Path) -> None:
    assert replayed(as_parquet) == replayed(whole)
    assert replayed(whole)[1] is None


@pytest.mark.parametrize("kind", ["whole", "as_parquet"])
def test_cut_anywhere(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    data = request.getfixturevalue(kind).read_bytes()
    places = np.random.default_rng(1).integers(0, len(data) - 8, 200)
    for place in [*map(int, places), 0, 1, 7, 8, len(data) - 9]:
        assert outcome(tmp_path / "cut", data[:place]), f"cut at {place}"


def test_a_cut_recording_gives_all_whole_batches(whole: Path, tmp_path: Path) -> None:
    data, (_, _, events) = whole.read_bytes(), replayed(whole)
    seen = []
    with whole.open("rb") as file:
        head = frame_at(file.fileno(), 0, len(data))
    assert head is not None
    first = head.end + 8  # past the head, of which nothing can be replayed
    for place in range(first, len(data), (len(data) - first) // 10):
        (tmp_path / "cut").write_bytes(data[:place])
        seen.append(replayed(tmp_path / "cut")[2])
    assert seen == sorted(seen)
    assert events >= seen[-1] > events // 2
    assert seen[0] < events // 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "as_parquet"])
def test_changed_anywhere(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Changed bytes are told, unless they change nothing: padding, or names and comments that nobody reads."""
    path: Path = request.getfixturevalue(kind)
    data, good = path.read_bytes(), replayed(path)
    random = np.random.default_rng(2)
    unnoticed = 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 4)):
            damaged[place] ^= int(random.integers(1, 256))
        if outcome(tmp_path / "damaged", bytes(damaged)) is None:
            unnoticed += 1
            assert replayed(tmp_path / "damaged") == good
    assert unnoticed < 40


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Anything done to the bytes: overwritten, removed, doubled, moved; with checksums made right again."""
    raw = bytearray(whole.read_bytes())
    good = replayed(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(raw)))
        end = min(len(raw), start + data.draw(st.integers(0, 64)))
        raw[start:end] = data.draw(st.binary(max_size=64) | st.just(bytes(raw[start:end]) * 2))
    if outcome(tmp_path / "fuzzed", bytes(raw)) is None:
        assert replayed(tmp_path / "fuzzed") == good


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(1, 255))
def test_damage_behind_a_right_checksum(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: float, value: int
) -> None:
    """Even where no checksum speaks up, decoding ends in a flaw or in rows, never in anything else."""
    raw = bytearray(whole.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= value
    checked = marks.from_metadata
    monkeypatch.setattr(marks, "from_metadata", lambda metadata, _: checked(metadata, None))
    outcome(tmp_path / "fuzzed", bytes(raw))


@pytest.mark.parametrize("column", ["seq", "time"])
def test_what_no_counter_reaches_is_damage(tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = busy(60)
    rows[column][200:] += 1 << 63
    path = tmp_path / "far"
    record(path, rows, size=100)
    for words in (["replay", str(path)], ["report", str(path)]):
        assert main(words) == 2
        assert f"column {column} holds" in capsys.readouterr().err


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\xff\xff\xff\xff\x10\0\0\0" + tail))
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    assert outcome(tmp_path / "any", raw)


def test_trailing_bytes_behind_the_end_are_nobodys(whole: Path, tmp_path: Path) -> None:
    assert outcome(tmp_path / "long", whole.read_bytes() + b"x" * 100) is None


def refusal(path: Path) -> str:
    with pytest.raises(RecordingError) as caught:
        Recording(path).close()
    assert caught.value.status == 2
    return str(caught.value)


def test_files_that_are_no_recordings(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert "it is empty" in refusal(tmp_path / "empty")
    assert "it is a directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none")
    (tmp_path / "text").write_text("To be, or not to be\n" * 10)
    assert "it is no recording" in refusal(tmp_path / "text")
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refusal(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert "cannot be read" in refusal(tmp_path / "socket")
    assert "no regular file" in refusal(Path("/dev/zero"))
    (tmp_path / "none.parquet").write_bytes(b"PAR1" * 9)
    assert "Parquet" in refusal(tmp_path / "none.parquet")


def test_what_is_refused_is_closed_once(tmp_path: Path) -> None:
    """A second time, some while later, would close whatever has the number then."""
    (tmp_path / "none.parquet").write_bytes(b"PAR1" * 9)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    (tmp_path / "text").write_text("To be, or not to be\n")
    for name in ("none.parquet", "foreign.parquet", "text"):
        gc.disable()
        try:
            refusal(tmp_path / name)
            files = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
        finally:
            gc.enable()
        gc.collect()
        for file in files:
            os.close(file)


def test_other_peoples_arrow(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2, 3]})
    with pa.OSFile(str(tmp_path / "stream"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    assert "no recording of ctxwatch" in refusal(tmp_path / "stream")
    with pa.OSFile(str(tmp_path / "file"), "wb") as out, pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table)
    assert "an Arrow IPC file, not a stream" in refusal(tmp_path / "file")
    pq.write_table(table, tmp_path / "parquet")
    assert "no recording of ctxwatch" in refusal(tmp_path / "parquet")


@pytest.mark.parametrize(
    ("name", "version", "than"), [("format", 99, "newer"), ("format", 1, "older"), ("rows", 99, "newer")]
)
def test_recordings_of_another_version(tmp_path: Path, name: str, version: int, than: str) -> None:
    document = json.loads(header().metadata()[headers.KEY])
    ours = document[name]
    document[name] = version
    schema = pa.schema([("a", "u1")], {headers.KEY: json.dumps(document)})
    with pa.OSFile(str(tmp_path / "new"), "wb") as out, pa.ipc.new_stream(out, schema) as stream:
        stream.write_batch(pa.record_batch([[1]], schema=schema))
    line = refusal(tmp_path / "new")
    assert f"its {name} version is {version}, {than} than {ours}" in line
    assert "the ctxwatch that made it" in line


def test_columns_that_are_not_ours(tmp_path: Path) -> None:
    schema = pa.schema([("seq", "u8"), ("time", "u4")], header().metadata())
    with pa.OSFile(str(tmp_path / "odd"), "wb") as out, pa.ipc.new_stream(out, schema) as stream:
        stream.write_batch(pa.record_batch([[1], [1]], schema=schema))
    assert "column 'time'" in refusal(tmp_path / "odd")


def test_a_header_that_lies(tmp_path: Path) -> None:
    for text in (
        "",
        "{}",
        "[]",
        "null",
        '{"format": "x"}',
        json.dumps({"format": headers.FORMAT, "rows": 1, "policy": 5}),
    ):
        with pa.OSFile(str(tmp_path / "lie"), "wb") as out:
            pa.ipc.new_stream(out, pa.schema([("seq", "u8")], {headers.KEY: text})).close()
        assert "header is damaged" in refusal(tmp_path / "lie")


def test_frames_of_a_recording_fill_it(whole: Path) -> None:
    fd, size, at = os.open(whole, os.O_RDONLY), whole.stat().st_size, 0
    try:
        while (frame := frame_at(fd, at, size)) is not None:
            assert frame.start == at
            at = frame.end
    finally:
        os.close(fd)
    assert at == size - 8


@pytest.mark.parametrize("kind", ["whole", "as_parquet"])
def test_batches_can_be_read_out_of_order(kind: str, request: pytest.FixtureRequest) -> None:
    with Recording(request.getfixturevalue(kind)) as recording:
        rows = np.concatenate(list(recording.batches()))
    with Recording(request.getfixturevalue(kind)) as recording:
        units = recording.index()
        assert recording.flaw is None
        assert recording.end is not None
        assert sum(unit.mark.rows for unit in units) == len(rows)
        for unit in reversed(units):
            wanted = rows[(rows["seq"] >= unit.mark.first) & (rows["seq"] <= unit.mark.last)]
            assert recording.batch(unit).tobytes() == wanted.tobytes()


def ring_of(path: Path, rows: Batch) -> None:
    """The ring that a guest with one vCPU left after these events, of which it holds as many as fit."""
    size = 256
    data = bytearray(ring.file_size(1, size, ROW.itemsize))
    head = np.frombuffer(data, ring.HEADER, 1)
    head["magic"], head["version"], head["schema"] = ring.MAGIC, ring.VERSION, SCHEMA_VERSION
    head["cpus"], head["rows"], head["row_size"], head["state"] = 1, size, ROW.itemsize, ring.State.ENDED
    np.frombuffer(data, ring.CONTROL, 1, ring.CONTROL_OFFSET)["head"] = min(len(rows), size)
    np.frombuffer(data, ROW, size, ring.rings_offset(1))[: len(rows)] = rows[:size]
    path.write_bytes(data)


@pytest.mark.parametrize(("seed", "bytes_hit"), tuple(enumerate((20, 300, 300, 3000, 60_000))))
def test_a_damaged_ring_is_used_as_far_as_it_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, bytes_hit: int
) -> None:
    rows, chance = busy(60)[:200].copy(), np.random.default_rng(seed)
    raw = rows.view("u1")
    raw[chance.integers(0, len(raw), bytes_hit)] = chance.integers(0, 256, bytes_hit)
    rows["kind"][7] = 99
    ring_of(tmp_path / "guest.ring", rows)
    path, out = str(tmp_path / "guest.ring"), str(tmp_path / "out")
    for words in (["replay", path], ["report", path, "-o", out], ["export", path, "--format", "csv", "-o", out]):
        status = main(words)
        said = capsys.readouterr().err
        assert status == 2 or (status == 1 and words[0] == "replay")
        assert "damaged row" in said
        assert said.startswith(f"ctxwatch: {path} is not whole: ")
        assert said.count("\n") == 1
