"""A real terminal for the REPL: tmux, typed at and read."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COLUMNS, ROWS = 110, 40


class Tmux:
    """One program in a tmux of its own: ctxwatch with `words`, or `program`. A context manager; evidence of a failure
    is the screen."""

    def __init__(
        self, *words: str, home: Path, program: Sequence[str] = (), columns: int = COLUMNS, rows: int = ROWS
    ) -> None:
        self._directory = tempfile.mkdtemp(prefix="ctxwatch-tmux-")
        self._socket = f"{self._directory}/s"
        # tmux now and then does not know how the program of a dead pane ended: it tells itself.
        self._status = Path(self._directory, "status")
        code = f"""if True:
            import pathlib, sys
            from gdbext.cli.main import main
            status = main()
            sys.stdout.flush()
            pathlib.Path({str(self._status)!r}).write_text(str(status))
            sys.exit(status)
            """
        environment = {"XDG_STATE_HOME": home / "state", "XDG_CONFIG_HOME": home / "config"}
        settings = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), *settings,
                   "--", *(program or (sys.executable, "-c", code, *words)))  # fmt: skip

    def __enter__(self) -> Tmux:
        self._tmux("set-option", "-g", "remain-on-exit", "on", check=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server", check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The program's process."""
        return int(self._tmux("display-message", "-p", "#{pane_pid}"))

    def type(self, text: str) -> None:
        """Type `text` as it is."""
        self._tmux("send-keys", "-l", "--", text)

    def key(self, *names: str) -> None:
        """Press keys by tmux's names (``Enter``, ``C-c``)."""
        self._tmux("send-keys", *names)

    def line(self, text: str) -> None:
        """Type a line and Enter."""
        self.type(text)
        self.key("Enter")

    def text(self, colours: bool = False, scrolled: bool = False) -> str:
        """What the screen shows; `scrolled`: with what has left it at the top, as a line does when the program ends."""
        more = (*(("-e",) if colours else ()), *(("-S", "-") if scrolled else ()))
        return self._tmux("capture-pane", "-p", *more, check=False)

    @property
    def toolbar(self) -> str:
        """The last line that is not empty."""
        return next((line for line in reversed(self.text().splitlines()) if line.strip()), "")

    def until(self, *wanted: str, seconds: float = 30.0) -> str:
        """Wait until the screen shows all of `wanted`."""
        deadline = time.monotonic() + seconds
        while True:
            shown = self.text()
            if all(one in shown for one in wanted):
                return shown
            assert time.monotonic() < deadline, f"{wanted} not on the screen:\n{shown}"
            time.sleep(0.03)

    def ended(self, seconds: float = 10.0) -> int:
        """Wait for ctxwatch to end; its exit status."""
        deadline = time.monotonic() + seconds
        while True:
            if self._tmux("display-message", "-p", "#{pane_dead}").strip() == "1" and self._status.exists():
                return int(self._status.read_text())
            assert time.monotonic() < deadline, f"it did not end:\n{self.text()}"
            time.sleep(0.05)

    def _tmux(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(["tmux", "-S", self._socket, *words], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout
