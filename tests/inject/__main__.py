"""``scripts/inject``: choose guests and faults, inject each into a running guest, and tell what was found."""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gdbext.cli import output
from gdbext.errors import CtxwatchError, UsageError, printable
from gdbext.qemu import guests
from tests.inject import table
from tests.inject.faults import FAULTS, Fault
from tests.inject.run import FOUND, NO_EFFECT, NOT_HERE, UNHEALTHY, bits_of, inject

KERNELS: Final = ("linux-amd64", "linux-amd64-new", "linux-i386")
"""The guests that `all` stands for."""
SCHEMA: Final = "ctxwatch.inject/1"
_FINE: Final = frozenset({FOUND, NO_EFFECT, NOT_HERE})

_EXAMPLES: Final = """examples:
  scripts/inject linux-amd64 user-flag-iopl      one fault
  scripts/inject linux-amd64 'skip-swapgs-*'     those whose names match
  scripts/inject linux-i386 all --json out.json  every fault that kernel can have
  scripts/inject all                             every fault in every Linux kernel
  scripts/inject linux-amd64 all --blind         told nothing of the kernel: no names, no profile
  scripts/inject --markdown out.json             the table in docs/injection.md

exit status: 0 all was found as expected, 1 something was not, 2 wrong usage, 3 a guest was not healthy to begin with
"""


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line asks; the exit status."""
    args = _parser().parse_intermixed_args(words)
    try:
        if args.markdown:
            print(table.markdown([_load(path) for path in args.markdown]))
            return 0
        if args.list:
            _list()
            return 0
        return _run(_chosen(args.guest, args.fault), args.json, args.blind)
    except CtxwatchError as error:
        print(f"inject: {error}", file=sys.stderr)
        return error.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/inject", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Change one thing in a healthy, running kernel from outside, and see that ctxwatch finds it.",
    )  # fmt: skip
    parser.add_argument("guest", nargs="?", help="a bundled guest, or all: the Linux kernels")
    parser.add_argument("fault", nargs="*", help="names or patterns of faults (default: all)")
    parser.add_argument("--blind", action="store_true", help="know nothing of the kernel: no names, no profile")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--json", metavar="FILE", help="write the results there, - for standard output")
    parser.add_argument("--markdown", nargs="+", metavar="FILE", help="print the table of results written by --json")
    return parser


def _list() -> None:
    for fault in FAULTS.values():
        bits = "" if len(fault.bits) == 2 else f" ({fault.bits[0]}-bit kernels)"
        print(f"{fault.name:34} {fault.says}{bits}")


def _chosen(guest: str | None, patterns: Sequence[str]) -> list[tuple[guests.Guest, Fault]]:
    if guest is None:
        raise UsageError("no guest is named", todo="scripts/inject --help shows examples")
    names = [name for p in patterns or ("all",) for name in FAULTS if p == "all" or fnmatch.fnmatchcase(name, p)]
    if not names:
        raise UsageError(f"no fault is called {' or '.join(patterns)}", todo="scripts/inject --list names them")
    subjects = [guests.find(name) for name in (KERNELS if guest == "all" else (guest,))]
    pairs = [(subject, FAULTS[name]) for subject in subjects for name in dict.fromkeys(names)]
    return [(subject, fault) for subject, fault in pairs if bits_of(subject) in fault.bits or fault.name in patterns]


def _run(chosen: Sequence[tuple[guests.Guest, Fault]], out: str | None, blind: bool) -> int:
    """Inject all, telling each at once and keeping what there is after each."""
    documents: list[dict[str, Any]] = []
    if out is not None and out != "-":
        _replace(Path(out), _json(documents))  # a wrong name is told at once
    for guest, fault in chosen:
        documents.append(inject(guest, fault, blind).document())
        if out != "-":
            print(table.line(documents[-1]), flush=True)
        if out is not None and out != "-":
            _replace(Path(out), _json(documents))
    print(_json(documents) if out == "-" else table.told(documents))
    verdicts = {document["verdict"] for document in documents}
    return 3 if UNHEALTHY in verdicts else int(not verdicts <= _FINE)


def _replace(path: Path, text: str) -> None:
    """Write `text` so that whoever ends the run at any time finds a whole file."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {printable(str(path))}", error.strerror or str(error)) from error


def _json(documents: Sequence[dict[str, Any]]) -> str:
    whole = {"schema": SCHEMA, "summary": table.summary(documents), "injections": documents}
    return json.dumps(whole, indent=1)


def _load(path: str) -> dict[str, Any]:
    try:
        document = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {printable(path)}", str(error)) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise UsageError(f"{printable(path)} holds no results", todo="name a file written by scripts/inject --json")
    known = [result for result in document["injections"] if result["fault"] in FAULTS]
    return document | {"injections": known}  # a fault that is no more is no result


if __name__ == "__main__":
    sys.exit(output.told(main))
