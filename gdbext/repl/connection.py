"""Where the REPL stands with its guest, as an explicit state machine."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final


class State(Enum):
    """What can be done now. A recording that is open is stopped for good: it can be looked at and cannot run."""

    IDLE = "idle"
    CONNECTING = "connecting"
    STOPPED = "stopped"
    RUNNING = "running"
    DEAD = "dead"


_NEXT: Final = {
    # GDB's own commands (target remote) connect without our help, hence from idle and dead to stopped and running.
    State.IDLE: {State.CONNECTING, State.STOPPED, State.RUNNING, State.DEAD},
    State.CONNECTING: {State.IDLE, State.STOPPED, State.RUNNING},
    State.STOPPED: {State.RUNNING, State.IDLE, State.DEAD},
    State.RUNNING: {State.STOPPED, State.IDLE, State.DEAD},
    State.DEAD: {State.CONNECTING, State.IDLE, State.STOPPED, State.RUNNING},
}


class Connection:
    """The state, why it is so, and who wants to know of changes.

    A connect that fails is back at idle; what was connected and is lost is dead, until a reconnect.
    """

    def __init__(self) -> None:
        self.state = State.IDLE
        self.reason = ""
        self._watchers: list[Callable[[State, State], None]] = []

    def watch(self, watcher: Callable[[State, State], None]) -> None:
        """Call `watcher` with the old and the new state after every change."""
        self._watchers.append(watcher)

    def can(self, state: State) -> bool:
        """Whether `state` can follow the one at hand."""
        return state in _NEXT[self.state]

    def move(self, state: State, reason: str = "") -> None:
        """Enter `state`; entering the one at hand does nothing. Raises ValueError for a move there is not."""
        if state is self.state:
            return
        if not self.can(state):
            raise ValueError(f"from {self.state.value} to {state.value}: no such move")
        before, self.state, self.reason = self.state, state, reason
        for watcher in list(self._watchers):
            watcher(before, state)

    @property
    def connected(self) -> bool:
        """There is a guest, standing or running."""
        return self.state in (State.STOPPED, State.RUNNING)
