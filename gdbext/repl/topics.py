"""The topics of ``help``: what can be done, in the order in which one needs it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gdbext.repl.declare import Command


class Topic(NamedTuple):
    """One topic: a line for the list, and its text."""

    summary: str
    text: str


TOPICS: Final[Mapping[str, Topic]] = {
    "connecting": Topic(
        "get at a guest: boot one, connect to one, open a recording",
        """
        boot NAME starts a bundled guest, boot -- and a QEMU command line your own, connect HOST:PORT reaches a QEMU
        that runs already, open FILE walks a recording. There is one at a time; taking another leaves the one before.
        If GDB or QEMU dies, the prompt says so, history and findings stay, and reconnect begins anew.
        """,
    ),
    "watching": Topic(
        "watch the contexts a guest resumes, and see what was found",
        """
        ctx watch checks every context that is resumed against the one that was interrupted; --halt stops the guest
        before the first wrong one. continue lets the guest run: what it prints and what is found appear above the
        prompt, which stays yours. findings draws what was found, explain CODE says what a code means.
        """,
    ),
    "running": Topic(
        "run, stop and step the guest",
        """
        All of GDB's commands work: continue, stepi, break, x/5i $pc, info registers, monitor … An empty line repeats
        the last one where GDB would. Ctrl-C stops the guest. While it runs, commands that need it standing still are
        refused in one line; the others work.
        """,
    ),
    "windows": Topic(
        "places in which the guest must not be stopped",
        """
        Between a syscall entry and the switch of stacks, and around swapgs before a return, the guest is half
        switched: an exception or a debugger's stop there is fatal on real machines. The prompt and the status line
        say when the guest stands in such a window; ctx windows lists them. Stepping in one and breakpoints in one are
        refused where the safety mode is on; ctx skip runs to its far side.
        """,
    ),
    "recordings": Topic(
        "walk a recording: goto, next-finding, prev",
        """
        ctxwatch run --record FILE and ctx record FILE write recordings; open FILE walks one, without QEMU and GDB.
        goto EVENT, next-finding and prev move, status and info registers show the state as of the event at hand. What
        a recording cannot do (run, step, read memory that was not captured) is refused by name.
        """,
    ),
    "keys": Topic(
        "keys of the prompt: completion, history, vi and emacs",
        """
        Tab completes commands, options, symbols, registers after $, finding codes and file names. Up and Ctrl-R find
        what was typed before, Right takes the suggestion. Pasted lines wait for Enter and run one after the other.
        Ctrl-C stops the guest, or clears the line when nothing runs; Ctrl-D leaves, and asks when a guest is there.
        """,
    ),
    "commands": Topic("the commands of the REPL itself; all others are GDB's", "help COMMAND tells more of each."),
}


def index() -> str:
    """The list of topics."""
    lines = [f"  {name:<11} {topic.summary}" for name, topic in TOPICS.items()]
    return "\n".join(["help TOPIC:", *lines, "help COMMAND is for any command, of the REPL and of GDB."])


def page(name: str, commands: Mapping[str, Command[Any]]) -> str:
    """The topic's text and the commands that belong to it."""
    own = {command.name: command for command in commands.values() if name in ("commands", command.topic)}
    paragraphs = textwrap.wrap(" ".join(textwrap.dedent(TOPICS[name].text).split()), 78)
    return "\n".join([*paragraphs, *([""] if own else []), *(f"  {n:<13} {c.summary}" for n, c in sorted(own.items()))])
