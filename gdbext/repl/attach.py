"""Bringing GDB and a guest together, and saying in one line why it does not work."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Final

from gdbext.errors import CtxwatchError
from gdbext.repl import mi
from gdbext.repl.debugger import Debugger, GdbGone, Refused
from gdbext.repl.links import Endpoint

ANSWER: Final = 4.0
"""Seconds a gdbstub gets for its first words; one that has a client says nothing at all."""

_NOBODY: Final = re.compile(
    r"refused|could not connect|No such file|unable to open|timed out|resolve|unreachable", re.I
)
_WIDTH: Final = re.compile(r"'g' packet", re.I)


async def attach(debugger: Debugger, endpoint: Endpoint) -> None:
    """Connect `debugger` to `endpoint`. Raises CtxwatchError, with GDB connected to nothing."""
    if endpoint.kernel is not None:
        try:
            await debugger.ask(f"-file-exec-and-symbols {mi.quoted(str(endpoint.kernel))}")
        except Refused as error:
            raise CtxwatchError(
                f"GDB cannot read the kernel {endpoint.kernel}", error.what, "leave --kernel out, or give its ELF file"
            ) from error
    if endpoint.architecture is not None:
        await debugger.ask(mi.console(f"set architecture {endpoint.architecture}"))
    try:
        await _target(debugger, endpoint.address)
    except Refused as error:
        if not _WIDTH.search(error.what):
            raise _explained(endpoint.address, error) from error
        # GDB took the kernel's word size for the machine's: a 64-bit QEMU describes a 64-bit machine in every mode.
        await debugger.ask(mi.console("set architecture i386:x86-64"))
        try:
            await _target(debugger, endpoint.address)
        except Refused as again:
            raise _explained(endpoint.address, again) from again


async def _target(debugger: Debugger, address: str) -> None:
    timer = asyncio.get_running_loop().call_later(ANSWER, debugger.interrupt)
    try:
        # GDB would try a port where nobody listens again and again for 15 seconds.
        await debugger.ask(mi.console(f"with tcp auto-retry off -- target remote {address}"))
    except asyncio.CancelledError:
        debugger.interrupt()
        raise
    finally:
        timer.cancel()


def _explained(address: str, error: Refused) -> CtxwatchError:
    said = error.what.rstrip(".\n")
    if _NOBODY.search(said):
        return CtxwatchError(f"nobody listens at {address}", said.removeprefix(f"{address}: "), "start QEMU with -gdb")
    if said == "Quit" or "timeout" in said:
        return CtxwatchError(
            f"{address} does not answer",
            "it is no gdbstub, or another debugger has it (QEMU serves one at a time)",
            "end the other one's session",
        )
    return CtxwatchError(f"what listens at {address} does not speak GDB's protocol", said, "is it QEMU's -gdb?")


async def forget(debugger: Debugger) -> None:
    """Leave whatever GDB is connected to: its breakpoints are removed and the guest goes on."""
    with contextlib.suppress(Refused, GdbGone):
        await debugger.ask(mi.console("detach"))
