"""``ctx profile``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import gdb

from gdbext.errors import printable
from gdbext.gdb.declare import Command, argument
from gdbext.gdb.extension import Extension


def run(extension: Extension, args: argparse.Namespace) -> None:
    """Choose the profile, or show the one chosen."""
    from gdbext.profiles.profile import shipped_names

    if args.profile is not None:
        extension.choose_profile(None if args.profile == "none" else args.profile)
        if extension.watch is not None:
            gdb.write("It holds from the next ctx watch on.\n")
    profile = extension.profile
    if profile is None:
        gdb.write(f"No profile: nothing is assumed of the kernel. Shipped are {', '.join(shipped_names())}.\n")
        return
    gdb.write(f"{profile.name}: {printable(profile.data.title)}\n")
    layout = profile.layout
    if layout is not None:
        slots = ", ".join(f"{name} {at:#x}" for name, at in sorted(layout.slots.items(), key=lambda item: item[1]))
        gdb.write(f"  save area of {layout.size} bytes: {slots}\n")
    for variable in profile.data.tracked:
        gdb.write(printable(f"  tracked: {variable.name} at {variable.address}, {variable.size} bytes") + "\n")
    for source in profile.data.sources:
        gdb.write(f"  from {printable(source)}\n")


def _names() -> Sequence[str]:
    from gdbext.profiles.profile import shipped_names

    return (*shipped_names(), "none")


COMMAND = Command(
    name="profile",
    summary="Choose what is known of the kernel: a profile by name or file.",
    text="""
        A profile says how a kernel keeps its contexts: the layout of its save areas, what its system calls may
        change, which variables are to be tracked. The rules need none, but say more with one. Without an argument,
        show the profile chosen; none goes back to assuming nothing.
    """,
    example="""
ctx profile nrk
ctx watch
""",
    run=run,
    arguments=(argument("profile", "a shipped profile, a TOML file, or none", nargs="?", metavar="NAME|FILE"),),
    complete=_names,
)
