"""``ctxwatch run`` and ``demo``: from what was asked to a watched run and its result."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gdbext.cli import feeds, session
from gdbext.cli.session import Outcome, Subject
from gdbext.cli.view import TerminalView
from gdbext.errors import UsageError
from gdbext.profiles import profile as profiles
from gdbext.qemu import command, guests, images
from gdbext.qemu.images import Image, Symbols
from gdbext.report import outfile, text
from gdbext.rules import codes
from gdbext.sources.knowledge import Knowledge

GENERIC: Final = "generic"
"""The profile that assumes nothing."""
LINUX: Final = {32: "linux-i386", 64: "linux-amd64"}
"""The profiles of a Linux kernel, by its bits."""


@dataclass(frozen=True, slots=True)
class Request:
    """What ``ctxwatch run`` was asked to do; the fields are its options, and the demo's ``learn``."""

    guest: str | None = None
    qemu: Sequence[str] = ()
    via: str = "auto"
    kernel: str | None = None
    profile: str | None = None
    halt: bool = False
    hold: bool = False
    learn: int = 0
    json: str | None = None
    record: str | None = None
    until: str | None = None
    timeout: float | None = None
    max_findings: int = 0
    simd: bool = False
    stores: str = "some"
    rules: str | None = None
    stripped: bool = False
    verbose: bool = False


def request(args: argparse.Namespace) -> Request:
    """The request that the parsed arguments of ``run`` make; raises UsageError where they contradict each other."""
    if (args.guest is None) == (not args.qemu):
        both = args.guest is not None
        what = "both a guest and a QEMU command line are given" if both else "nothing to run"
        raise UsageError(what, todo="name a bundled guest, or put your QEMU command line after --")
    if args.stripped and args.guest is None:
        raise UsageError("--stripped is for bundled guests", todo="leave it out")
    if args.hold and not args.halt:
        raise UsageError("--hold keeps a guest that --halt has stopped", todo="give both")
    if args.timeout is not None and not args.timeout > 0:  # NaN is neither
        raise UsageError(f"--timeout {args.timeout:g} is not a time", todo="give it seconds")
    if args.max_findings < 0:
        raise UsageError(f"--max-findings {args.max_findings} is not a number of findings", todo="give it 1 or more")
    return Request(**{name: getattr(args, name) for name in Request.__dataclass_fields__ if name in args})


def run(asked: Request) -> int:
    """Do it, show it, and return the exit status."""
    with contextlib.ExitStack() as stack:
        _keep_apart(asked)
        record = (Path(asked.record),) if asked.record else ()
        document = stack.enter_context(outfile.document(asked.json, *record)) if asked.json else None
        view = TerminalView(quiet=asked.json == "-", verbose=asked.verbose)
        subject, simd, profile = _subject(asked, view)
        options = session.Options(
            halt=asked.halt,
            hold=asked.hold,
            learn=asked.learn,
            timeout=asked.timeout,
            max_findings=asked.max_findings,
            codes=codes.parse(asked.rules) if asked.rules is not None else None,
            record=Path(asked.record) if asked.record else None,
        )
        knowledge = knowledge_of(asked.profile or profile or _recognised(subject.image, view), subject.image, view.note)
        kernel = subject.image.path if subject.image is not None and not subject.image.packed else None
        ours = asked.guest is not None and guests.find(asked.guest).linux is None
        wishes = feeds.Wishes(asked.halt, asked.simd or simd, asked.stores == "all", asked.simd, kernel, retime=ours)
        feed = feeds.choose(asked.via, subject.argv, wishes, view.note)
        with view:
            outcome = session.watch(subject, knowledge, options, feed, view)
        if document is not None:
            print(outcome.report.json(), file=document)
    return _conclude(outcome, quiet=asked.json == "-")


def _keep_apart(asked: Request) -> None:
    """Raises UsageError where what is to be written is the kernel, or what else the guest is started from."""
    kernel = (Path(asked.kernel),) if asked.kernel else ()
    for path in (Path(name) for name in (asked.json, asked.record) if name):
        outfile.keep_apart(path, *kernel, called="kernel")
        outfile.keep_apart(path, *command.files(asked.qemu), called="guest's file")


def knowledge_of(profile: str, image: Image | None, note: Callable[[str], None]) -> Knowledge:
    """What `profile` and the kernel's `image` say of it."""
    knowledge = Knowledge(profiles.find(profile), image.symbols if image is not None else Symbols(), note)
    if image is not None:
        knowledge.policy = replace(knowledge.policy, fixups=image.fixups)
    return knowledge


def _conclude(outcome: Outcome, quiet: bool) -> int:
    if not quiet:
        console = text.console()
        console.print(text.render_summary(outcome.report))
    if outcome.failure is not None and outcome.status == outcome.failure.status:
        raise outcome.failure
    return outcome.status


def _subject(asked: Request, view: TerminalView) -> tuple[Subject, bool, str]:
    """What to watch, whether its SIMD state matters, its profile's name (or "")."""
    if asked.guest is None:
        return _own(asked, view), False, ""
    guest = guests.find(asked.guest)
    kernel = guests.build(guest, stripped=asked.stripped)
    image = images.load(Path(asked.kernel) if asked.kernel else kernel)
    until = guest.until if asked.until is None else asked.until
    subject = Subject(guest.name, tuple(guest.command(kernel)), image, until, guest.seconds, guest.nmi_ms, ticks=True)
    return subject, guest.simd, guest.profile


def _recognised(image: Image | None, view: TerminalView) -> str:
    """The profile for a kernel that nobody has named one for."""
    if image is None or not image.symbols.are_linux:
        return GENERIC
    name = LINUX[image.bits]
    view.note(f"this is a Linux kernel: using the profile {name} (--profile {GENERIC} assumes nothing)")
    return name


def _own(asked: Request, view: TerminalView) -> Subject:
    options = command.Options(asked.qemu)
    if asked.until and options.serial is command.SerialAt.ELSEWHERE:
        raise UsageError(
            "--until reads the guest's first serial port, which your command line leads elsewhere",
            todo="leave -serial out, or use -serial stdio",
        )
    image: Image | None = None
    if asked.kernel is not None:
        image = images.load(Path(asked.kernel))
    elif options.kernel is not None:
        try:
            image = images.load(options.kernel)
        except UsageError as error:  # not ours to refuse: QEMU boots more than we can read
            view.detail(f"going on without symbols: {error}")
    if image is not None and not len(image.symbols):
        view.detail(f"{image.path} has no symbols: addresses are shown as numbers")
    name = options.kernel.name if options.kernel is not None else options.program
    return Subject(name, tuple(asked.qemu), image, asked.until or "", unknown=asked.profile is None)
