"""The terminal: the prompt that stays usable while the guest runs, its keys, its history."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.search import stop_search

from gdbext.errors import CtxwatchError, printable
from gdbext.repl import blocks, toolbar
from gdbext.repl.complete import ReplCompleter
from gdbext.repl.screen import STYLE, TerminalScreen
from gdbext.repl.session import Session

_AT_ONCE: Final = 0.3
"""Seconds a command may take before the prompt comes back without it: most answer at once, and the prompt then shows
what became of them."""
_TICK: Final = 0.02
_REFRESH: Final = 0.5
_ASKED: Final = "\0asked"
"""What the prompt returns when it makes room for a question: nothing a person can type."""


class Prompt:
    """Reads lines until the user leaves. ``input`` and ``output`` are the terminal's unless given."""

    def __init__(
        self,
        session: Session,
        screen: TerminalScreen,
        history: History,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._session, self._screen = session, screen
        self._running: set[asyncio.Task[object]] = set()
        self._refused: CtxwatchError | None = None
        self._questions: list[tuple[str, asyncio.Future[bool]]] = []
        self._kept = ""
        self._prompt: PromptSession[str] = PromptSession(
            history=history,
            auto_suggest=AutoSuggestFromHistory() if session.config.suggest else None,
            completer=ReplCompleter(session),
            complete_while_typing=False,
            bottom_toolbar=lambda: toolbar.toolbar(session),
            key_bindings=self._keys(),
            multiline=Condition(self._block_open),
            prompt_continuation="> ",
            style=STYLE,
            refresh_interval=_REFRESH,
            input=input,
            output=output,
        )
        self._question: PromptSession[str] = PromptSession(input=input, output=output)
        session.live.connection.watch(lambda before, after: self._prompt.app.invalidate())

    async def loop(self, first: str = "") -> int:
        """Do `first`, then prompt and run until the user leaves; the exit status. Raises CtxwatchError if `first` is
        refused."""
        with patch_stdout(raw=True):
            if first:
                await self._begin(self._session.do(first), 0)
            while not self._session.leaving:
                try:
                    text = await self._read()
                except EOFError:
                    what = self._session.something_runs
                    if not what or await self._put(f"{what}. Leave?", at_end=True):
                        break
                    continue
                if text == _ASKED:
                    await self._put_questions()
                elif not self._session.leaving:
                    await self._begin(self._session.run(text))
        if self._refused is not None:
            raise self._refused
        return 0

    async def _read(self) -> str:
        self._screen.flush()
        self._prompt.editing_mode = EditingMode.VI if self._session.config.keys == "vi" else EditingMode.EMACS
        kept, self._kept = self._kept, ""
        return await self._prompt.prompt_async(lambda: toolbar.message(self._session), default=kept)

    async def _begin(self, work: Coroutine[Any, Any, object], patience: float = _AT_ONCE) -> None:
        """Start to do what was typed; return when it is done, or takes longer than a person likes to wait."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._session.interrupt)
        task: asyncio.Task[object] = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        deadline = time.monotonic() + patience
        while not task.done() and (self._questions or time.monotonic() < deadline):
            await asyncio.wait({task}, timeout=_TICK)
            await self._put_questions()

    def _done(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, CtxwatchError):
            self._refused = error
            self._session.leaving = True
            self._prompt.app.erase_when_done = True
        elif error is not None:
            self._screen.error(f"the REPL failed: {type(error).__name__}: {error}; please report it")
        if self._session.leaving and self._prompt.app.is_running:
            self._prompt.app.exit(result="")

    async def ask(self, question: str) -> bool:
        """A yes-or-no question of a command; it is put where the prompt is, and the prompt comes back as it was."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._questions.append((question, answer))
        if self._prompt.app.is_running:
            self._kept = self._prompt.default_buffer.text
            self._prompt.app.exit(result=_ASKED)
        return await answer

    async def _put_questions(self) -> None:
        while self._questions:
            question, answer = self._questions[0]
            answer.set_result(await self._put(question))
            del self._questions[0]

    async def _put(self, question: str, at_end: bool = False) -> bool:
        """Ask now. Ctrl-C answers no, and Ctrl-D, or a terminal that is gone, `at_end`."""
        self._screen.flush()
        try:
            answer = await self._question.prompt_async(f"{printable(question)} (y or n) ")
        except KeyboardInterrupt:
            return False
        except EOFError:
            return at_end
        return answer.strip().lower() in ("y", "yes")

    def _block_open(self) -> bool:
        return self._session.recorded is None and blocks.depth(self._prompt.default_buffer.text) > 0

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        @keys.add(Keys.SIGINT)
        def _interrupt(event: KeyPressEvent) -> None:
            if self._session.interruptible:
                self._session.interrupt()
            elif event.app.layout.is_searching:
                stop_search()
            elif event.current_buffer.text:
                event.current_buffer.reset()
            else:
                self._screen.note("nothing runs; Ctrl-D leaves")

        @keys.add("c-d", filter=Condition(lambda: not self._prompt.default_buffer.text))
        def _leave(event: KeyPressEvent) -> None:
            event.app.exit(exception=EOFError)

        return keys
