"""``ctxwatch learn``: from a kernel's file, or a guest that is run for a moment, to a profile."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gdbext.cli import feeds
from gdbext.code.disasm import Code
from gdbext.errors import CtxwatchError, GuestFailed, UsageError, printable
from gdbext.events.row import Batch, concat
from gdbext.profiles.learn import Learnt, confirm, describe, learn
from gdbext.profiles.offline import find_entries
from gdbext.profiles.schema import NAME
from gdbext.qemu import guests, images
from gdbext.qemu.images import Image, Symbols
from gdbext.qemu.machine import Machine
from gdbext.report import outfile
from gdbext.sources.areas import AreaWatcher
from gdbext.sources.base import Source
from gdbext.sources.learning import Handlers
from gdbext.sources.probe import ProbeSource


@dataclass(frozen=True, slots=True)
class Request:
    """What ``ctxwatch learn`` was asked to do; the fields are its options."""

    guest: str | None
    qemu: Sequence[str]
    kernel: str | None
    output: str | None
    name: str
    entries: int
    timeout: float


def request(args: argparse.Namespace) -> Request:
    """The request that the parsed arguments make; raises UsageError where they contradict each other."""
    if sum(map(bool, (args.guest, args.qemu, args.kernel))) != 1:
        raise UsageError(
            "what is to be learnt from is not clear",
            todo="name one: a bundled guest, --kernel FILE, or your QEMU command line after --",
        )
    if not NAME.fullmatch(args.name):
        raise UsageError(f"{args.name!r} is no name for a profile", todo="use lower-case letters, digits, - and _")
    if args.entries < 1 or not args.timeout > 0:
        raise UsageError("--entries and --timeout must be more than 0")
    return Request(**{name: getattr(args, name) for name in Request.__dataclass_fields__})


def run(asked: Request) -> int:
    """Learn, tell what the paths forget, write the profile; the exit status."""
    kernel = (Path(asked.kernel),) if asked.kernel else ()
    with outfile.document("-" if asked.output is None else asked.output, *kernel, called="kernel") as document:
        print(_profile(asked), end="", file=document)
    return 0


def _profile(asked: Request) -> str:
    """The profile's text."""
    image: Image | None = None
    if asked.kernel:
        image = images.load(Path(asked.kernel))
        learnt = _offline(image)
    else:
        learnt, image = _live(asked)
    _tell(learnt, image.symbols if image is not None else Symbols())
    if not learnt.found:
        raise GuestFailed(
            "no save area was found",
            "no path from an entry stores enough registers in one place",
            "write a profile by hand: see docs/profiles.md",
        )
    return learnt.profile_text(asked.name)


def _offline(image: Image) -> Learnt:
    code = Code(image.read, image.bits)
    entries = find_entries(code, image.segments, image.symbols.addresses)
    if not entries:
        raise GuestFailed(
            f"{image.path} shows no entry path", "nothing near an iret stores a context", "run it: ctxwatch learn -- …"
        )
    return learn(code, entries)


def _live(asked: Request) -> tuple[Learnt, Image | None]:
    """Run the guest until enough entries were seen; learn from them, and confirm it on the saves seen."""
    image: Image | None = None
    argv = tuple(asked.qemu)
    if asked.guest is not None:
        guest = guests.find(asked.guest)
        kernel = guests.build(guest)
        image, argv = images.load(kernel), tuple(guest.command(kernel))
    feed = feeds.choose("probe", argv, feeds.Wishes(), lambda _: None)
    with (
        contextlib.closing(feed),
        feeds.start(argv, feed) as machine,
        contextlib.closing(feed.open(machine)) as source,
    ):
        return _Listener(asked, machine, source, image).learn(), image


class _Listener:
    """Collects what a running guest shows."""

    def __init__(self, asked: Request, machine: Machine, source: Source, image: Image | None) -> None:
        self._asked, self._machine, self._source = asked, machine, source
        self._readers: list[Callable[[int, int], bytes]] = [source.read_memory, machine.read_memory]
        if image is not None:
            self._readers.append(image.read)
        symbols = image.symbols if image is not None else Symbols()
        still = source.still if isinstance(source, ProbeSource) else contextlib.nullcontext
        self._handlers = Handlers()
        self._areas = AreaWatcher(None, source, symbols.address, lambda _: None, self._read, still)
        self._rows: list[Batch] = []

    def learn(self) -> Learnt:
        """Watch until there is enough, hold the guest, and learn."""
        self._watch()
        if not self._handlers.entries:
            raise GuestFailed("the guest made no entry", "it ended, or runs without an interrupt table", "give it time")
        self._machine.stop()
        self._handlers.read_table(self._read)
        learnt = learn(Code(self._read, self._handlers.bits), self._handlers.all)
        if self._rows and learnt.current and not learnt.on_stack:
            confirm(learnt, concat(self._rows))
        return learnt

    def _watch(self) -> None:
        deadline = time.monotonic() + self._asked.timeout
        while time.monotonic() < deadline and self._handlers.entries < self._asked.entries:
            batch = self._source.read(0.05)
            for _ in self._machine.serial():
                pass
            if batch is None or self._machine.ending() is not None:
                return
            if len(batch):
                self._handlers.note(batch)
                self._rows += [part for part in (self._areas.look(batch), batch) if len(part)]

    def _read(self, address: int, length: int) -> bytes:
        for reader in self._readers:
            with contextlib.suppress(OSError, CtxwatchError):
                return reader(address, length)
        raise OSError(f"{address:#x} cannot be read")


def _tell(learnt: Learnt, symbols: Symbols) -> None:
    """What was found, on standard error: the profile may be on standard output."""
    for entry, statement in learnt.statements:
        name = symbols.name(entry.address)
        _say(f"{describe(entry)}{f' ({name})' if name else ''}: {statement.text}")
    if learnt.found and not learnt.statements:
        _say("entry and exit paths agree: each register is loaded from the slot in which it was stored")
    if learnt.found and not learnt.current:
        _say("where the area lies only the handler knows: add `current` or an [areas] table to have it watched")
    if learnt.tried:
        _say(f"{learnt.confirmed} of {learnt.tried} saves seen live agree with this layout")


def _say(text: str) -> None:
    print(f"ctxwatch: {printable(text)}", file=sys.stderr)
