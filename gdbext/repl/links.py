"""What the REPL can be connected to, and how each is reached: a guest in a QEMU of ours, or somebody's gdbstub."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from gdbext.errors import CtxwatchError, EnvironmentUnusable, UsageError
from gdbext.repl import peers

if TYPE_CHECKING:
    from gdbext.qemu.machine import Machine

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where GDB connects: ``address`` as GDB takes it; the kernel's file, if known; GDB's architecture, if known."""

    address: str
    kernel: Path | None = None
    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class News:
    """``serial``: lines the guest printed (raw); ``ending``: how the machine ended, told once; ``gone``: there is
    nothing left of it to look at."""

    serial: Sequence[str] = ()
    ending: str = ""
    gone: bool = False


class Link(Protocol):
    """A guest and the way to it."""

    title: str
    ours: bool
    """The guest ends with the REPL."""

    async def open(self) -> Endpoint:
        """Make sure the guest is there; may be called again after it was lost. Raises CtxwatchError."""

    async def poll(self) -> News:
        """What happened since the last call."""

    async def close(self) -> None:
        """Leave it; a guest of ours is ended. Idempotent."""


class AddressLink:
    """A gdbstub at ``HOST:PORT``, ``:PORT`` or a UNIX socket's path, opened by somebody else."""

    ours = False

    def __init__(self, address: str, kernel: Path | None = None) -> None:
        self.title = address
        self._endpoint = Endpoint(_checked(address), kernel)

    async def open(self) -> Endpoint:
        """See :class:`Link`."""
        if peers.taken(self._endpoint.address):
            raise CtxwatchError(
                f"{self.title} has a client already",
                "QEMU serves one debugger at a time",
                "end the other one's session",
            )
        return self._endpoint

    async def poll(self) -> News:
        """See :class:`Link`."""
        return News()

    async def close(self) -> None:
        """See :class:`Link`."""


@dataclass(frozen=True, slots=True)
class Boot:
    """How a QEMU of ours is started.

    ``kernel``: its ELF file, if there is one; ``plugin``: given the machine's private directory, the words that load
    the probe; ``note``: what the user should know of this, in a line.
    """

    argv: Sequence[str]
    kernel: Path | None = None
    plugin: Callable[[Path], Sequence[str]] | None = None
    note: str = ""


class MachineLink:
    """A guest in a QEMU of ours, stopped before its first instruction. ``boot`` makes ready what is started, which may
    take a while; ``note`` then is what it has to say."""

    ours = True

    def __init__(self, title: str, boot: Callable[[], Boot]) -> None:
        self.title = title
        self.note = ""
        self._boot = boot
        # QEMU is killed when the thread that started it ends, so that one thread does everything.
        self._hands: ThreadPoolExecutor | None = None
        self._machine: Machine | None = None
        self._kernel: Path | None = None
        self._told = False

    async def open(self) -> Endpoint:
        """See :class:`Link`. A machine that still runs is taken as it is."""
        return await self._do(self._open)

    async def poll(self) -> News:
        """See :class:`Link`."""
        return await self._do(self._poll) if self._hands is not None else News()

    async def close(self) -> None:
        """See :class:`Link`."""
        if self._hands is not None:
            await self._do(self._close)
            self._hands.shutdown(wait=False)
            self._hands = None

    async def _do(self, work: Callable[[], _T]) -> _T:
        if self._hands is None:
            self._hands = ThreadPoolExecutor(1, "ctxwatch-machine")
        return await asyncio.get_running_loop().run_in_executor(self._hands, work)

    def _open(self) -> Endpoint:
        from gdbext.qemu.machine import Machine
        from gdbext.sources.gdbstub import ARCHITECTURES

        if self._machine is not None and self._machine.ending() is not None:
            self._close()
        if self._machine is None:
            boot = self._boot()
            self._machine = Machine(boot.argv, gdbstub=True, plugin=boot.plugin)
            self._kernel, self.note, self._told = boot.kernel, boot.note, False
        return Endpoint(str(self._machine.gdb), self._kernel, ARCHITECTURES[self._machine.arch])

    def _poll(self) -> News:
        machine = self._machine
        if machine is None:
            return News()
        lines = machine.serial()
        ending = machine.ending()
        if ending is None or self._told or lines:
            return News(lines)
        self._told = True
        return News(lines, ending.detail, gone=ending.how in ("exit", "killed", "quit"))

    def _close(self) -> None:
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.close()


def bundled(name: str) -> MachineLink:
    """The bundled guest `name`, its clock counting instructions."""
    return MachineLink(name, lambda: _bundled(name))


def _bundled(name: str) -> Boot:
    from gdbext.qemu import guests
    from gdbext.qemu.machine import COUNTED_TIME

    guest = guests.find(name)
    kernel = guests.build(guest)
    return Boot((*guest.command(kernel), "-icount", COUNTED_TIME), kernel)


def own(argv: Sequence[str], kernel: Path | None) -> MachineLink:
    """The guest of the user's own QEMU command line `argv`, with the probe where it can be had. kernel: the file with
    its symbols; without one the command line's, if that is an ELF file."""
    from gdbext.qemu.command import Options

    given = Options(argv).kernel
    title = given.name if given is not None else Path(argv[0]).name
    return MachineLink(title, lambda: _own(argv, kernel or (given if _is_elf(given) else None)))


def _own(argv: Sequence[str], kernel: Path | None) -> Boot:
    from gdbext.qemu import probe
    from gdbext.qemu.command import Options
    from gdbext.qemu.machine import which

    program = which(argv[0])
    try:
        build = probe.build(program, accelerator=Options(argv).accelerator)
    except EnvironmentUnusable as error:
        return Boot(argv, kernel, note=f"`ctx watch` will use breakpoints, milliseconds an event: {error}")
    return Boot(argv, kernel, lambda directory: probe.attachable(build, directory / "guest"))


def _is_elf(path: Path | None) -> bool:
    if path is None:
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False  # QEMU will say why


def _checked(address: str) -> str:
    """`address` in the form GDB takes. Raises UsageError for what can be none, before GDB waits for it."""
    if "/" in address:
        path = Path(address)
        try:
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise UsageError(f"{address} is no socket", todo="give HOST:PORT or the path of QEMU's UNIX socket")
        except OSError as error:
            raise CtxwatchError(f"nobody listens at {address}", error.strerror or "", "start QEMU with -gdb") from error
        return address
    host, colon, port = address.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{address!r} is no address", todo="give HOST:PORT or the path of QEMU's UNIX socket")
    return f"{host or 'localhost'}:{port}" if colon else f"localhost:{port}"
