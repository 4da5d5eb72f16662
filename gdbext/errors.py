"""The one exception tree of ctxwatch and its one formatter.

Every refusal a person can meet is a :class:`CtxwatchError`: what happened, why (as far as known) and what to do
next. The front ends print ``str(error)`` as a single line and exit with ``error.status``; a traceback is shown only
when ``CTXWATCH_TRACEBACK`` is set in the environment.
"""

from __future__ import annotations


class CtxwatchError(Exception):
    """Something a person can do something about.

    what: the fact, one clause.  why: the probable cause, or "".  todo: the next step, or "".
    ``status`` is the exit status of the contract (2: wrong usage or an unusable environment).
    """

    status = 2

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        super().__init__(what, why, todo)
        self.what = what
        self.why = why
        self.todo = todo

    def __str__(self) -> str:
        line = self.what
        if self.why:
            line += f": {self.why}"
        if self.todo:
            line += f"; {self.todo}"
        return printable(line)


class UsageError(CtxwatchError):
    """A command, option, profile or file that says something we do not understand."""


class EnvironmentUnusable(CtxwatchError):
    """A program, package or feature that is needed is not here."""


class GuestFailed(CtxwatchError):
    """The guest or QEMU did not do what was asked (did not start, died without a finding, text not seen)."""

    status = 3


class RecordingError(CtxwatchError):
    """A recording or ring that cannot be read, or not to its end."""


class NotCapable(CtxwatchError):
    """The source at hand cannot do this; ``what`` names the thing refused."""


def printable(text: str) -> str:
    """Return `text` with control characters escaped, so that a guest's strings cannot drive a terminal.

    Tab stays; newlines and everything below 0x20, DEL, C1 controls, surrogates and the Unicode direction overrides
    become ``\\xNN`` or ``\\uNNNN``.
    """
    if text.isprintable():
        return text
    return "".join(_escape(ch) for ch in text)


def _escape(ch: str) -> str:
    if ch == "\t" or ch.isprintable():
        return ch
    code = ord(ch)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
