"""A client of GDB's debug adapter (``gdb -i=dap``), as an editor is one."""

from __future__ import annotations

import functools
import json
import queue
import subprocess
import threading
import time
from types import TracebackType
from typing import IO, Any, Final, Self

from gdbext.sources.leash import leash
from tests.gdb.conftest import EXTENSION

Message = dict[str, Any]

_LENGTH: Final = b"content-length:"


@functools.cache
def has_adapter() -> bool:
    """Whether this GDB has one."""
    asked = ["gdb", "-nx", "-q", "-batch", "-ex", "python import gdb.dap; print('has', 'one')"]
    return "has one" in subprocess.run(asked, capture_output=True, text=True, check=False).stdout


class Client:
    """GDB as an adapter, with the extension loaded; not attached yet. ``with`` ends it."""

    def __init__(self) -> None:
        options = ("-nx", "-q", "-i=dap", "-iex", "set debuginfod enabled off", "-ex", f"source {EXTENSION}")
        self.process = subprocess.Popen(
            ["gdb", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=leash()
        )
        self.log: list[Message] = []
        """All that came, in order."""
        self._came: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._seq = 0
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        self.ask("initialize", clientID="tests", adapterID="gdb")
        self.event("initialized")

    def _read(self, stream: IO[bytes]) -> None:
        while line := stream.readline():
            if line.lower().startswith(_LENGTH):
                stream.readline()
                self._came.put(json.loads(stream.read(int(line[len(_LENGTH) :]))))

    def attach(self, program: str, target: str, breakpoints: list[Message] | None = None) -> None:
        """Attach to a guest that stands still, as editors do: with the breakpoints known before."""
        if breakpoints is not None:
            self.ask("setFunctionBreakpoints", breakpoints=breakpoints)
        attach = self.send("attach", program=program, target=target)
        self.ask("configurationDone")
        self.wait(lambda message: message.get("request_seq") == attach, "the answer to attach")
        if not any(message.get("event") == "stopped" for message in self.log):
            self.event("stopped")

    def send(self, command: str, **arguments: Any) -> int:
        """Send a request; its number."""
        self._seq += 1
        request = {"seq": self._seq, "type": "request", "command": command, "arguments": arguments}
        text = json.dumps(request).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))
        self.process.stdin.flush()
        return self._seq

    def ask(self, command: str, **arguments: Any) -> Message:
        """Send a request; the answer."""
        number = self.send(command, **arguments)
        return self.wait(lambda message: message.get("request_seq") == number, f"the answer to {command}")

    def console(self, command: str) -> str:
        """What the console answers to a command of GDB, or its error."""
        answer = self.ask("evaluate", expression=command, context="repl")
        return str(answer["body"]["result"] if answer["success"] else answer["message"])

    def run(self, command: str, **arguments: Any) -> tuple[Message, str]:
        """Send a request that runs the guest. The ``stopped`` event that follows the answer; all output up to it."""
        self.settle()
        start = len(self.log)
        answer = self.ask(command, threadId=1, **arguments)
        assert answer["success"] or command == "stepOut", answer
        stopped = next((one for one in self.log[start:] if one.get("event") == "stopped"), None)
        return stopped or self.event("stopped"), self.output(start)

    def event(self, name: str) -> Message:
        """Wait for an event."""
        return self.wait(lambda message: message.get("event") == name, f"the event {name}")

    def output(self, start: int = 0) -> str:
        """What was put out from message `start` on."""
        self.settle()
        return "".join(str(one["body"]["output"]) for one in self.log[start:] if one.get("event") == "output")

    def settle(self) -> None:
        """Until everything is there that came of what was asked before."""
        self.ask("threads")
        self.ask("threads")

    def wait(self, fits: Any, what: str, timeout: float = 100.0) -> Message:
        """The first message from now on that fits."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._came.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                said = "\n".join(map(str, self.log[-20:]))
                raise TimeoutError(f"{what} did not come within {timeout} s after:\n{said}") from None
            self.log.append(message)
            if fits(message):
                return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
