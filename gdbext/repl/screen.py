"""What is shown above the prompt: GDB's words, the guest's, and our own. All that others say is escaped first."""

from __future__ import annotations

import asyncio
import io
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Final, Protocol

from prompt_toolkit import print_formatted_text
from prompt_toolkit.application import get_app_session
from prompt_toolkit.formatted_text import ANSI, FormattedText, to_formatted_text
from prompt_toolkit.formatted_text.utils import fragment_list_to_text
from prompt_toolkit.styles import Style

from gdbext.errors import printable
from gdbext.repl import highlight
from gdbext.repl.highlight import Fragments

STYLE: Final = Style.from_dict({
    "error": "ansired",
    "note": "ansibrightblack",
    "serial": "ansibrightblack",
    "finding": "ansired bold",
    "mark": "ansiyellow bold",
    "address": "ansicyan",
    "symbol": "ansiyellow",
    "pygments": "",
    "pygments.name.function": "bold",
    "pygments.name.builtin": "ansigreen",
    "pygments.name.variable": "ansigreen",
    "pygments.name.constant": "",
    "pygments.literal.number": "ansimagenta",
    "pygments.keyword.type": "",
    "pygments.operator": "",
    "pygments.comment": "ansibrightblack noitalic",
    "pygments.error": "",
    "prompt": "bold",
    "prompt.running": "ansigreen bold",
    "prompt.window": "ansired bold",
    "prompt.dead": "ansired bold",
    "bottom-toolbar": "noreverse",
    "toolbar.state": "bold",
    "toolbar.warning": "bg:ansired ansiwhite bold",
})  # fmt: skip

_FINDING: Final = re.compile(r"ctxwatch: CW\d{3} ")
_NAMED: Final = re.compile(r"\s*\S+(?: \S+)?\s{2,}")
_DELAY: Final = 0.02
"""Seconds in which lines are gathered: the prompt is drawn anew for each batch, not for each line."""


class Screen(Protocol):
    """Where a session shows things. Text from GDB or the guest is raw: the screen escapes it."""

    def gdb(self, text: str) -> None:
        """GDB wrote `text`, which need not end a line."""

    def log(self, text: str) -> None:
        """GDB complained."""

    def end_line(self) -> None:
        """What GDB wrote is complete, with or without a newline."""

    def serial(self, line: str) -> None:
        """The guest printed a line."""

    def note(self, text: str) -> None:
        """Something a person should know, one line."""

    def error(self, text: str) -> None:
        """Something refused or gone wrong, one line."""

    def text(self, text: str) -> None:
        """Lines of ours."""

    def ansi(self, text: str) -> None:
        """Lines of ours that carry colours as escape sequences; what came from the guest is escaped in them."""

    @property
    def columns(self) -> int:
        """Width."""


class TerminalScreen:
    """Prints above the prompt if there is one, in batches."""

    def __init__(self) -> None:
        self._pending: Fragments = []
        self._partial = ""
        self._partial_style = ""
        self._handle: asyncio.TimerHandle | None = None
        self.failed: OSError | None = None
        """Why the output takes nothing more."""
        self.fail: Callable[[], None] = lambda: None
        """Called when that has happened."""

    @property
    def columns(self) -> int:
        """See :class:`Screen`."""
        return get_app_session().output.get_size().columns

    def gdb(self, text: str) -> None:
        """See :class:`Screen`."""
        self._stream(text, "")

    def log(self, text: str) -> None:
        """See :class:`Screen`."""
        self._stream(text, "class:error")

    def serial(self, line: str) -> None:
        """See :class:`Screen`."""
        self._add([("class:serial", f"  │ {printable(line)}")])

    def note(self, text: str) -> None:
        """See :class:`Screen`."""
        self._add([("class:note", wrapped(printable(text), self.columns))])

    def error(self, text: str) -> None:
        """See :class:`Screen`."""
        self._add([("class:error", wrapped(printable(text), self.columns))])

    def text(self, text: str) -> None:
        """See :class:`Screen`."""
        for line in text.rstrip("\n").split("\n"):
            self._add([("", wrapped(printable(line), self.columns))])

    def ansi(self, text: str) -> None:
        """See :class:`Screen`."""
        self._add(list(to_formatted_text(ANSI(text.rstrip("\n")))))

    def end_line(self) -> None:
        """See :class:`Screen`."""
        if self._partial:
            self._line(self._partial, self._partial_style)
            self._partial = ""

    def flush(self) -> None:
        """Show at once what was gathered."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        pending, self._pending = self._pending, []
        if pending:
            self._print(pending)

    def _print(self, fragments: Fragments) -> None:
        print_formatted_text(FormattedText(fragments), style=STYLE, end="")

    def _stream(self, text: str, style: str) -> None:
        if style != self._partial_style:
            self.end_line()
            self._partial_style = style
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._line(line, style)

    def _line(self, line: str, style: str) -> None:
        safe = printable(line)
        if _FINDING.match(safe):
            self._add([("class:finding", wrapped(safe, self.columns))])
        else:
            first, *more = wrapped(safe, self.columns).split("\n")
            self._add((highlight.instruction(first) if not style else None) or [(style, first)])
            for rest in more:
                self._add([(style, rest)])

    def _add(self, fragments: Fragments) -> None:
        self._pending += fragments
        self._pending.append(("", "\n"))
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(_DELAY, self.flush)


class ScriptScreen(TerminalScreen):
    """Where nobody is at a prompt: what is refused goes to standard error, as with ctxwatch's other commands."""

    def error(self, text: str) -> None:
        """See :class:`Screen`."""
        self.flush()
        sys.stdout.flush()
        print(f"ctxwatch: {printable(text)}", file=sys.stderr, flush=True)

    def _print(self, fragments: Fragments) -> None:
        """A file gets plain lines. An output that takes none is for who runs the script to tell: what is shown may come
        from anywhere."""
        if sys.stdout.isatty():
            super()._print(fragments)
        elif self.failed is None:
            try:
                sys.stdout.write(fragment_list_to_text(fragments))
                sys.stdout.flush()
            except OSError as error:
                self.failed = error
                self.fail()


def wrapped(line: str, columns: int) -> str:
    """A line that is wider than the terminal, broken between words; what goes on stands below what is told of the
    first words, where that has a column of its own."""
    if len(line.expandtabs()) <= columns or not sys.stdout.isatty():
        return line
    named = _NAMED.match(line.expandtabs())
    start = named.end() if named is not None else len(line) - len(line.lstrip()) + 2
    indent = " " * min(start, columns // 2)
    return "\n".join(textwrap.wrap(line, columns, subsequent_indent=indent, break_on_hyphens=False))


def rendered(renderable: object, columns: int) -> str:
    """What rich makes of `renderable`, with colours, `columns` wide; no narrower than values need."""
    from rich.console import Console

    from gdbext.report.text import NARROWEST

    drawn = io.StringIO()
    console = Console(
        file=drawn,
        width=max(columns, NARROWEST),
        force_terminal=True,
        color_system="standard",
        highlight=False,
        markup=False,
    )
    console.print(renderable)
    return "\n".join(line.rstrip() for line in drawn.getvalue().split("\n"))
