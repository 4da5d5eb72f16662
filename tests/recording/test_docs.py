"""docs/recordings.md is as the declarations are, and what it says to ask of a recording gives the right answers."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from gdbext.cli.main import main
from gdbext.events.row import Flag, How, Kind
from gdbext.recording import schema
from tests.gdb import transcript
from tests.recording.sessions import busy, record

PAGE = Path(__file__).parents[2] / "docs" / "recordings.md"
REFRESH = "CTXWATCH_REFRESH_DOCS"
BEGIN = f"<!-- columns: made from the declarations by {REFRESH}=1 python -m pytest tests/recording/test_docs.py -->\n"
NUMBERS = "<!-- numbers: made likewise -->\n"


def columns() -> str:
    """The columns as the page lists them; neighbours that mean the same in one line."""
    lines = ["| column | type | what it is |", "|---|---|---|"]
    groups: list[tuple[list[str], str, str]] = []
    for field in schema.schema(simd=True):
        unit = field.metadata.get(b"unit", b"").decode()
        kind = str(field.type).replace("fixed_size_list<item: ", "list<") + (f", {unit}" if unit else "")
        doc = field.metadata[b"doc"].decode()
        if groups and groups[-1][1:] == (kind, doc):
            groups[-1][0].append(field.name)
        else:
            groups.append(([field.name], kind, doc))
    lines += [f"| {', '.join(f'`{name}`' for name in names)} | {kind} | {doc} |" for names, kind, doc in groups]
    return "\n".join(lines) + "\n"


def numbers() -> str:
    """What the numbers mean."""
    bits = [(name.lower(), value) for name, value in vars(Flag).items() if name.isupper()]
    said = {
        "kind": [f"{number} {name}" for number, name in Kind.NAMES.items()],
        "how": [f"{number} {name}" for number, name in How.NAMES.items()],
        "flags": [f"{value:#x} {name.replace('_', '-')}" for name, value in bits],
    }
    return "".join(f"- `{name}`: {', '.join(meanings)}\n" for name, meanings in said.items())


def test_the_columns_are_those_declared() -> None:
    text = PAGE.read_text("utf-8")
    for begin, end, made in (
        (BEGIN, "<!-- end of columns -->\n", columns()),
        (NUMBERS, "<!-- end of numbers -->\n", numbers()),
    ):
        before, rest = text.split(begin)
        shown, after = rest.split(end)
        if os.environ.get(REFRESH):
            text = before + begin + made + end + after
            PAGE.write_text(text, "utf-8")
        else:
            assert shown == made, f"docs/recordings.md is stale: {REFRESH}=1 python -m pytest {__file__} renews it"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording whose exits name their entries, as the probe's do."""
    rows = busy(300)
    waiting: dict[tuple[int, int, int], int] = {}
    for row in rows:
        key = int(row["cpu"]), int(row["rip"]), int(row["rsp"])
        if row["kind"] == Kind.ENTRY:
            waiting[key] = int(row["seq"])
        elif row["kind"] == Kind.EXIT:
            row["match"] = waiting.pop(key, 0)
    path = tmp_path_factory.mktemp("docs") / "session.arrow"
    record(path, rows)
    return path


def per_vector(table: pa.Table) -> dict[int, int]:
    """Entries of each vector."""
    entries = table.filter(pc.equal(table["kind"], Kind.ENTRY))
    return {pair["values"]: pair["counts"] for pair in entries["vector"].value_counts().to_pylist()}


def slowest(table: pa.Table) -> list[int]:
    """The ten longest times from entry to exit, nanoseconds."""
    time = dict(zip(table["seq"].to_pylist(), table["time"].to_pylist(), strict=True))
    exits = table.filter(pc.equal(table["kind"], Kind.EXIT)).select(["match", "time"]).to_pylist()
    return sorted((row["time"] - time[row["match"]] for row in exits if row["match"]), reverse=True)[:10]


def resumes(table: pa.Table, cr3: int, fs_base: int) -> list[int]:
    """The events that resume a thread."""
    mine = pc.and_(pc.equal(table["cr3"], cr3), pc.equal(table["fs_base"], fs_base))
    events: list[int] = table.filter(pc.and_(pc.equal(table["kind"], Kind.EXIT), mine))["seq"].to_pylist()
    return events


def test_the_columns_hold_what_the_questions_ask_for(session: Path) -> None:
    table = pa.ipc.open_stream(session).read_all()
    rows = busy(300)
    entry = rows["kind"] == Kind.ENTRY
    assert per_vector(table) == {
        n: int((rows["vector"][entry] == n).sum()) for n in set(rows["vector"][entry].tolist())
    }
    assert len(slowest(table)) == 10
    assert slowest(table)[0] > 0
    assert resumes(table, 0x100000, 0x10000)


def blocks() -> dict[str, list[str]]:
    """The page's code by library: its lines."""
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return {name: block.splitlines() for block in found for name in ("pandas", "polars", "duckdb") if name in block}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session that the page asks."""
    path = tmp_path_factory.mktemp("asked") / "session.arrow"
    assert main(["run", "nrk-rflags", "--via", "probe", "--record", str(path)]) == 1
    return path


@pytest.mark.guest
@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_the_lines_of_the_page_answer(library: str, recorded: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install -e '.[queries]'")
    *setup, vectors, slow, thread = [line for line in blocks()[library] if line]
    scope: dict[str, Any] = {}
    exec("\n".join(setup).replace("session.arrow", str(recorded)), scope)
    table = pa.ipc.open_stream(recorded).read_all()

    def answer(line: str, column: str) -> list[int]:
        found = eval(line, scope)
        if library == "duckdb":
            return list(found.fetchnumpy()[column].tolist())
        return list(found[column].to_list())

    if library == "pandas":
        found = [eval(line, scope) for line in (vectors, slow, thread)]
        assert found[0].to_dict() == per_vector(table)
        (shown,) = re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        assert not transcript.missing(shown.splitlines(), ">>>", "\n".join(map(str, found)))
    else:
        counts = zip(answer(vectors, "vector"), answer(vectors, "len" if library == "polars" else "n"), strict=True)
        assert dict(counts) == per_vector(table)
    assert sorted(answer(slow, "ns"), reverse=True) == slowest(table)
    thread_of_the_page = resumes(table, 0x174000, 0x602000)
    assert thread_of_the_page, "the page's thread is not there: take another one's CR3 and FS base"
    assert sorted(answer(thread, "seq")) == thread_of_the_page
