"""``ctxwatch export``: a recording in another format."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from gdbext.cli.recordings import export

    return export(args.file, args.format, args.output)


COMMAND = Command(
    name="export",
    summary="turn a recording into a trace, Parquet or CSV",
    details="perfetto: a trace for Perfetto or Chrome's about:tracing, with a track per vCPU, nested handlers, the\n"
    "active GS base, windows, and findings as markers (a name that ends in .gz is compressed). parquet: the same\n"
    "columns; `ctxwatch replay` takes it too. csv: a line an event, 64-bit values in hexadecimal.",
    example="ctxwatch export session.arrow --format perfetto -o trace.json",
    arguments=(
        argument("file", metavar="FILE", help="the recording"),
        argument("--format", choices=("perfetto", "parquet", "csv"), required=True, help="what to make of it"),
        argument("--output", "-o", metavar="OUT", help="the file to write; default: FILE with the format's suffix"),
    ),
    run=_run,
    order=14,
)
