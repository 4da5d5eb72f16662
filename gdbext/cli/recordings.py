"""``ctxwatch replay``, ``export`` and ``report``: what is done with a recording, without QEMU and GDB."""

from __future__ import annotations

import contextlib
import gzip
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gdbext.cli.view import TerminalView
from gdbext.errors import UsageError
from gdbext.profiles import profile as profiles
from gdbext.recording.reader import Recording
from gdbext.recording.replay import Replay
from gdbext.report import outfile, recorded, text
from gdbext.report.document import not_all_seen
from gdbext.rules import codes
from gdbext.rules.policy import Policy

INCOMPLETE: Final = 2
"""Exit status where a recording could not be read to its end: what was not read may hold anything."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What ``ctxwatch replay`` was asked to do; the fields are its options."""

    file: str
    profile: str | None = None
    rules: str | None = None
    json: str | None = None
    max_findings: int = 0
    verbose: bool = False


def replay(asked: ReplayRequest) -> int:
    """Judge the recording again, show it, and return the exit status."""
    if asked.max_findings < 0:
        raise UsageError(f"--max-findings {asked.max_findings} is not a number of findings", todo="give it 1 or more")
    quiet = asked.json == "-"
    view = TerminalView(quiet=quiet, verbose=asked.verbose)
    with (
        Recording(Path(asked.file), threaded=True) as recording,
        outfile.document(asked.json, Path(asked.file)) if asked.json else contextlib.nullcontext() as document,
    ):
        chosen = codes.parse(asked.rules) if asked.rules is not None else None
        work = Replay(recording, _policy(asked.profile, recording, view.note), chosen, asked.max_findings)
        started = time.monotonic()
        events = 0
        with view:
            for batch, findings in work.steps():
                events += len(batch)
                for finding in findings:
                    view.finding(finding)
                view.progress(work.engine.counts, time.monotonic() - started)
        result = recorded.report(work)
        if document is not None:
            print(result.json(), file=document)
        view.detail(f"replayed {events} events in {time.monotonic() - started:.2f} s")
        if not quiet:
            text.console().print(text.render_summary(result))
        whole = _say_flaw(recording, view.note)
    if result.has_errors or not whole:
        return 1 if result.has_errors else INCOMPLETE
    loss = not_all_seen(result.lost)
    if loss is not None:
        raise loss
    return 0


def _policy(name: str | None, recording: Recording, note: Note) -> Policy | None:
    """The policy of another profile; None for the recorded one. Names are those that the recording holds."""
    if name is None or name == recording.header.profile:
        return None
    with Recording(recording.path) as names:
        names.index()
        return profiles.find(name).policy(names.guest.address, note)


def _say_flaw(recording: Recording, note: Note) -> bool:
    """Say what is missing of the recording; True if nothing is."""
    if recording.flaw is None:
        return True
    note(f"{recording.path} is not whole: {recording.flaw}; what could be read was used")
    return False


def export(file: str, form: str, name: str | None) -> int:
    """Write the recording in another format and return the exit status."""
    suffix = {"perfetto": ".perfetto.json", "parquet": ".parquet", "csv": ".csv"}[form]
    view = TerminalView()
    with Recording(Path(file)) as recording, _output(recording, name, suffix) as partial:
        {"perfetto": _to_trace, "parquet": _to_parquet, "csv": _to_csv}[form](recording, partial)
        return 0 if _say_flaw(recording, view.note) else INCOMPLETE


def report(file: str, name: str | None) -> int:
    """Write the recording's page and return the exit status."""
    from gdbext.report import html
    from gdbext.report.gather import Gatherer

    view = TerminalView()
    with Recording(Path(file), threaded=True) as recording, _output(recording, name, ".html") as partial:
        work, gathered = Replay(recording), Gatherer()
        with view:
            started = time.monotonic()
            for batch, findings in work.steps():
                gathered.feed(batch.rows, bool(findings))
                view.progress(work.engine.counts, time.monotonic() - started)
        gathered.finish()
        page = html.page(recorded.report(work), recording.header, gathered, recording.guest.symbol)
        partial.write_text(page, encoding="utf-8")
        return 0 if _say_flaw(recording, view.note) else INCOMPLETE


def _to_parquet(recording: Recording, path: Path) -> None:
    from gdbext.recording.parquet import ParquetWriter

    with path.open("wb") as out:  # a name of bytes that are no text is more than Arrow can open
        writer = ParquetWriter(out, recording.header, recording.simd)
        for batch, mark in recording.units():
            writer.write(batch, mark)
        writer.close(recording.end)


def _to_csv(recording: Recording, path: Path) -> None:
    from gdbext.recording.csv import CsvWriter

    with path.open("wb") as out, CsvWriter(out, recording.simd) as writer:
        for batch in recording.batches():
            writer.write(batch)


def _to_trace(recording: Recording, path: Path) -> None:
    from gdbext.report.trace import TraceWriter

    packed = path.name.endswith(".gz.partial")
    with gzip.open(path, "wt", 3, "utf-8") if packed else path.open("w", encoding="utf-8") as out:
        writer = TraceWriter(out, recording.header.guest, recording.guest.symbol)
        for batch, findings in Replay(recording).steps():
            writer.feed(batch.rows, findings)
        writer.finish()


@contextlib.contextmanager
def _output(recording: Recording, name: str | None, suffix: str) -> Iterator[Path]:
    """Where to write what `recording` becomes: beside the final name, which it gets when it is whole."""
    if name == "-":
        raise UsageError("cannot write to standard output", todo="choose a name with -o")
    path = Path(name) if name else recording.path.with_name(recording.path.name + suffix)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"cannot write {path}", "it is not a regular file", "choose another name with -o")
    with outfile.writing(path), outfile.beside(path, recording.path) as partial:
        yield partial
