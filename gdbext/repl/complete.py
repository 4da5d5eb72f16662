"""What may come next on the line: our commands and arguments, GDB's, registers, finding codes, file names."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Final

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from gdbext.errors import CtxwatchError, printable
from gdbext.repl.session import Session
from gdbext.rules.codes import CODES

MOST: Final = 200
_REGISTER: Final = re.compile(r"\$(\w*)$")
_CODE: Final = re.compile(r"\b[Cc][Ww]\d*$")
_WORD: Final = re.compile(r"\S*$")


class ReplCompleter(Completer):
    """Completes the line up to the cursor."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What can be completed without asking GDB."""
        line = document.current_line_before_cursor.lstrip()
        word = _matched(_WORD, line)
        ours = self._session.command(line) if " " in line else None
        if ours is not None:
            yield from self._arguments(ours[0].name, word, document, complete_event)
            return
        if " " not in line:
            yield from _words(self._session.commands, word)
        code = _CODE.search(line)
        if code is not None:
            yield from _words(CODES, code[0].upper(), len(code[0]))
        if self._session.recorded is not None:
            yield from _words(self._session.recorded.words(line), word)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """All of it: what GDB can complete, too."""
        found = {completion.text: completion for completion in self.get_completions(document, complete_event)}
        line = document.current_line_before_cursor.lstrip()
        ours = self._session.command(line) if " " in line else None
        if line and self._session.recorded is None and (ours is None or ours[0].name == "help"):
            for completion in [c async for c in self._gdb(line)][:MOST]:
                found.setdefault(completion.text, completion)
        for completion in found.values():
            yield _ended(completion) if len(found) == 1 else completion

    def _arguments(
        self, name: str, word: str, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        command = self._session.commands[name]
        try:
            yield from _words(command.complete(self._session) if command.complete else (), word)
        except CtxwatchError:
            return  # there is nothing to choose from, which running the command tells
        if command.files:
            for path in self._paths.get_completions(Document(word), complete_event):
                yield Completion(path.text, path.start_position, display=path.display)

    async def _gdb(self, line: str) -> AsyncGenerator[Completion, None]:
        live = self._session.live
        register = _REGISTER.search(line)
        if register is not None:
            for completion in _words(await live.registers(), register[1]):
                yield completion
        word = _matched(_WORD, line)
        matches = await live.complete(line)
        if not matches and word:
            # A word that begins with what GDB takes for a separator (--halt): ask for all words there can be.
            matches = await live.complete(line[: -len(word)])
        for match in matches:
            if match.startswith(line):
                # GDB gives whole lines; complete from the last space on, so that the menu shows whole words.
                start = len(line) - len(word)
                yield Completion(printable(match[start:]), -len(word))


def _words(words: Iterable[str], start: str, length: int | None = None) -> Iterator[Completion]:
    for word in sorted(set(words)):
        if word.startswith(start):
            yield Completion(word, -(len(start) if length is None else length))


def _ended(completion: Completion) -> Completion:
    """The only completion there is, with the space that follows a whole word (and not a directory)."""
    if completion.text.endswith("/") or completion.display_text.endswith("/"):
        return completion
    return Completion(completion.text + " ", completion.start_position, display=completion.display)


def _matched(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    return found[0] if found is not None else ""
