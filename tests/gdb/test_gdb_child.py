"""The GDB process under the gdbstub source: how its death is told, whose pipes and sockets close before it is gone."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from gdbext.sources.gdbchild import GdbChild, GdbDied
from gdbext.sources.gdbstub import GdbstubSource


class Standin(GdbChild):
    """A shell script in GDB's place."""

    def __init__(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        super().__init__(str(path))

    def _load(self) -> None:
        """It knows no commands."""


def test_who_killed_it_is_told_though_its_pipe_closes_first(tmp_path: Path) -> None:
    script = "exec 0<&-; echo closed; sleep 0.5; kill -9 $$"
    with contextlib.closing(Standin(tmp_path / "gdb", script)) as child:
        deadline = time.monotonic() + 20
        while "closed" not in child.console:
            assert time.monotonic() < deadline
            child.poll()
        with pytest.raises(GdbDied, match="killed by SIGKILL"):
            child.command("-gdb-show confirm")


def test_the_end_of_the_rows_waits_for_the_end_of_gdb(tmp_path: Path) -> None:
    source = object.__new__(GdbstubSource)
    source._closed = source._told = False
    with contextlib.closing(Standin(tmp_path / "gdb", "sleep 1; kill -9 $$")) as source._child:
        with pytest.raises(GdbDied, match="killed by SIGKILL"):
            source._look_for_death()
        source._look_for_death()  # once


def test_a_gdb_that_answers_is_not_waited_for(tmp_path: Path) -> None:
    source = object.__new__(GdbstubSource)
    source._closed = source._told = False
    script = "read line; echo '1^done'; exec sleep 60"
    with contextlib.closing(Standin(tmp_path / "gdb", script)) as source._child:
        began = time.monotonic()
        source._look_for_death()
        assert time.monotonic() - began < 30
        source._child._process.kill()
