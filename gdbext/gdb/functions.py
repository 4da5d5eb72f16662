"""Convenience functions: ``$ctx_parity()`` and ``$ctx_window(PC)``."""

from __future__ import annotations

from typing import Any

import gdb

from gdbext.code.windows import find
from gdbext.gdb.extension import Extension
from gdbext.gdb.target import Target


class ParityFunction(gdb.Function):  # type: ignore[misc]  # GDB's classes have no types
    """$ctx_parity(): which GS base is active on the selected CPU by count of swapgs.

    "user", "kernel", or "unknown" before CPL 3 was seen or while nothing is watched.
    """

    def __init__(self, extension: Extension) -> None:
        super().__init__("ctx_parity")
        self._extension = extension

    def invoke(self, *more: Any) -> str:
        """Called by GDB's expressions."""
        if more:
            raise gdb.GdbError("$ctx_parity takes nothing: $ctx_parity()")
        watch = self._extension.watch
        return parity_name(watch.gs.parity(Target.cpu()) if watch else None)


class WindowFunction(gdb.Function):  # type: ignore[misc]  # GDB's classes have no types
    """$ctx_window(PC): the reason code of the window that PC lies in, or "none".

    A breakpoint condition may use it: break foo if $_streq($ctx_window($pc), "none").
    """

    def __init__(self, extension: Extension) -> None:
        super().__init__("ctx_window")
        self._extension = extension

    def invoke(self, pc: Any = None, *more: Any) -> str:
        """Called by GDB's expressions."""
        if pc is None or more:
            raise gdb.GdbError("$ctx_window takes one address, as in $ctx_window($pc)")
        try:
            address = int(pc) & ((1 << 64) - 1)
        except (gdb.error, ValueError) as error:
            raise gdb.GdbError(f"$ctx_window: {pc} is no address") from error
        windows = self._extension.windows
        window = find(windows.known() or windows.all(), address)
        return window.reason.value if window else "none"


def parity_name(kernel: bool | None) -> str:
    """The parity in one word."""
    return "unknown" if kernel is None else "kernel" if kernel else "user"


def register_functions(extension: Extension) -> None:
    """Add the functions to this GDB."""
    ParityFunction(extension)
    WindowFunction(extension)
