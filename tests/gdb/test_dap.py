"""The safety mode through GDB's debug adapter: a real ``gdb -i=dap`` over a real guest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.gdb.adapter import Client, has_adapter
from tests.gdb.conftest import Boot, Live, lasting

pytestmark = [
    pytest.mark.gdb,
    pytest.mark.guest,
    pytest.mark.skipif(not has_adapter(), reason="this GDB has no debug adapter: it came with GDB 14"),
]

IN_ENTRY = {"instructionReference": "syscall_entry", "offset": 3}
REFUSED = "<syscall_entry+0x3> is in a window (syscall-entry)"


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client
        # No client is told of breakpoints that are not the user's.
        told = [one["body"]["breakpoint"]["id"] for one in client.log if one.get("event") == "breakpoint"]
        assert all(number > 0 for number in told), told


Up = Callable[..., Live]


@pytest.fixture
def up(boot: Boot, client: Client) -> Up:
    """Attach to a guest and let it come to its tenth tick."""

    def start(name: str, breakpoints: list[dict[str, Any]] | None = None) -> Live:
        live = boot(name)
        client.attach(str(live.kernel), str(live.machine.gdb), breakpoints)
        if breakpoints is None:
            client.console("tbreak tick if ticks >= 10")
            client.run("continue")
        return live

    return start


def pc(client: Client) -> str:
    return client.console("output/x $rip")


def test_steps_in_a_window_are_refused_with_the_reason_and_the_guest_stands(client: Client, up: Up) -> None:
    up("clean-nrk")
    client.console("ctx safe override tbreak *(syscall_entry+3)")
    _, said = client.run("continue")
    assert f"{REFUSED}: kernel code, user RSP, kernel GS active" in said
    before = pc(client)
    for request, command in (("stepIn", "step"), ("next", "next"), ("stepOut", "finish")):
        stopped, said = client.run(request)
        assert f"{command} refused: " in said, request
        assert REFUSED in said
        assert "half-switched now: kernel code, user RSP" in said
        assert stopped["body"]["threadId"] == 1
    for request in ("stepIn", "next"):
        _, said = client.run(request, granularity="instruction")
        assert "i refused: " in said, request
    assert "stepi refused: " in client.console("stepi 4")
    assert "jump refused: " in client.console("jump *$pc")
    assert pc(client) == before
    frames = client.ask("stackTrace", threadId=1, levels=1)["body"]["stackFrames"]
    assert "syscall_entry" in frames[0]["name"]
    assert "past the syscall-entry window" in client.console("ctx skip")
    _, said = client.run("stepIn", granularity="instruction")
    assert "refused" not in said
    assert pc(client) != before


def test_a_refused_step_is_answered_before_the_stop_is_told(client: Client, up: Up) -> None:
    """An editor takes the guest for running from the answer to the stop."""
    up("clean-nrk")
    client.console("ctx safe override tbreak *(syscall_entry+3)")
    client.run("continue")
    for _ in range(10):
        client.settle()
        answer = client.ask("stepIn", threadId=1, granularity="instruction")
        assert answer["success"]
        client.event("stopped")  # from the answer on


def test_calls_are_refused_in_a_window_alone(client: Client, up: Up) -> None:
    up("clean-nrk")
    client.console("ctx safe override tbreak *(syscall_entry+3)")
    client.run("continue")
    for context in ("watch", "hover", "variables", "repl"):
        expression = "print tick(0)" if context == "repl" else "tick(0)"
        answer = client.ask("evaluate", expression=expression, context=context)
        assert not answer["success"]
        assert "may-call-functions is off" in answer["message"]
    client.console("ctx skip")
    assert "is on" in client.console("show may-call-functions")


def test_a_step_from_in_front_stops_at_the_edge(client: Client, up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting(monkeypatch, 200_000)
    up("clean-osdev")
    client.console("python import sys; sys.path.append('.'); from tests.gdb.safety_places import *")
    for request in ("stepIn", "next"):
        client.console("python in_front('syscall-entry')")
        stopped, said = client.run(request, granularity="instruction")
        while "edge of a window" not in said:  # up to the syscall itself
            assert stopped["body"]["reason"] == "step"
            stopped, said = client.run(request, granularity="instruction")
        assert "was not executed; ctx skip runs past the window" in said
        assert client.console("output $pc == (unsigned long)&syscall_entry") == "1"


def test_breakpoints_in_a_window_are_refused_and_the_list_can_be_sent_again(client: Client, up: Up) -> None:
    up("clean-nrk")
    for _ in range(2):
        answer = client.ask("setInstructionBreakpoints", breakpoints=[IN_ENTRY, {"instructionReference": "tick"}])
        bad, good = answer["body"]["breakpoints"]
        assert not bad["verified"]
        assert REFUSED in bad["message"]
        assert "the nearest safe address is " in bad["message"]
        assert good["verified"]
    (bad,) = client.ask("setFunctionBreakpoints", breakpoints=[{"name": "syscall_entry"}])["body"]["breakpoints"]
    assert not bad["verified"]
    line = client.console("info line *(syscall_entry+3)")
    number, path = int(line.split()[1]), line.split('"')[1]
    source, lines = {"path": path}, [{"line": number}]
    (bad,) = client.ask("setBreakpoints", source=source, breakpoints=lines)["body"]["breakpoints"]
    assert not bad["verified"]
    assert "refused and deleted: breakpoint" not in client.console("info breakpoints")
    assert client.console("info breakpoints").count("keep y") == 1
    assert "refused and deleted" in client.console("break *(syscall_entry+3)")
    assert client.ask("setInstructionBreakpoints", breakpoints=[])["success"]
    assert "No breakpoints" in client.console("info breakpoints")


def test_breakpoints_that_were_there_before_the_guest_are_refused_at_its_first_stop(client: Client, up: Up) -> None:
    wanted = [{"name": "syscall_entry"}, {"name": "tick"}]
    up("clean-nrk", wanted)
    _, said = client.run("continue")
    assert "refused and deleted: " in said
    assert "<syscall_entry> is in a window" in said
    assert client.console("info breakpoints").count("keep y") == 1
    bad, good = client.ask("setFunctionBreakpoints", breakpoints=wanted)["body"]["breakpoints"]
    assert not bad["verified"]
    assert good["verified"]
