"""Adding the extension to this GDB: its commands, functions, machine interface and window, and what it listens to."""

from __future__ import annotations

from typing import Final

from gdbext.gdb import adapter, declare
from gdbext.gdb.extension import Extension
from gdbext.gdb.functions import register_functions
from gdbext.gdb.mi import register_mi
from gdbext.gdb.prefix import Adapter, Prefix
from gdbext.gdb.tui import register_tui

registered: Final[list[Extension]] = []
"""The extension of this GDB, once it is there."""


def register() -> None:
    """Add the extension to this GDB; a second call changes nothing."""
    if registered:
        return
    extension = Extension()
    registered.append(extension)
    Prefix()
    for command in declare.discover():
        Adapter(command, extension)
    register_functions(extension)
    register_mi(extension)
    extension.safety.connect_events()
    extension.connect_events()
    adapter.connect(extension.safety.delete_refused)
    register_tui(extension)  # it shows what the events before it have brought about
