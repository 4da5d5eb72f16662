"""QEMU's step flags: what it holds back while GDB steps a vCPU (its gdbstub's ``qqemu.sstep`` packets)."""

from __future__ import annotations

from typing import Final

import gdb

from gdbext.errors import CtxwatchError, NotCapable, printable

_NOIRQ: Final = 2
_NOTIMER: Final = 4


def read() -> int:
    """The flags; raises NotCapable where the stub has none or GDB lets no packets through."""
    return int(_ask("qqemu.sstep"), 16)


def let_in(irqs: bool) -> bool:
    """Let interrupts and timers in while stepping, or hold them back; what is so now. Raises as :func:`read` does."""
    flags = read()
    held = _NOIRQ | _NOTIMER
    reply = _ask(f"Qqemu.sstep={flags & ~held if irqs else flags | held:x}")
    if reply != "OK":
        raise CtxwatchError("QEMU did not take the step flags", printable(reply[:40]))
    return not read() & _NOIRQ


def describe(flags: int) -> str:
    """In a sentence."""
    irqs = "held back" if flags & _NOIRQ else "let in"
    timers = "held back" if flags & _NOTIMER else "let in"
    return f"While QEMU steps, interrupts are {irqs} and timers are {timers} (sstep {flags:#x})."


def _ask(packet: str) -> str:
    connection = getattr(gdb.selected_inferior(), "connection", None)
    if connection is None or not hasattr(connection, "send_packet"):
        raise NotCapable(
            "the step flags cannot be asked for", "this GDB lets no packets through", "use GDB 12 or later"
        )
    reply = bytes(connection.send_packet(packet)).decode("ascii", "replace")
    if not reply or reply.startswith("E"):
        raise NotCapable("the step flags cannot be asked for", "the stub is not QEMU's")
    return reply
