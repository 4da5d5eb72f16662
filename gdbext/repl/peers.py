"""Whether a gdbstub on this machine has a client already, told without disturbing it.

QEMU serves one debugger at a time. A second one is not refused: it is kept waiting, and the guest is stopped for it
once the first has gone. So we look before we connect, at what the kernel says of its sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CONNECTED: Final = "03"
"""State of a UNIX socket in /proc/net/unix (SS_CONNECTED, linux/net.h)."""
_ESTABLISHED, _LISTEN = "01", "0A"
"""States of a TCP socket in /proc/net/tcp (linux/net/tcp_states.h)."""
_HERE: Final = ("localhost", "127.0.0.1", "[::1]", "::1")


def taken(address: str, proc: Path = Path("/proc/net")) -> bool:
    """Whether somebody is connected to `address`, ``HOST:PORT`` or a UNIX socket's path; False where that cannot be
    known."""
    if "/" in address:
        names = {address, str(Path(address).resolve())}
        return any(fields[-1] in names and fields[5] == _CONNECTED for fields in _lines(proc / "unix", 8))
    host, _, port = address.rpartition(":")
    if host not in _HERE or not port.isdecimal():
        return False
    states = {
        fields[3]
        for table in ("tcp", "tcp6")
        for fields in _lines(proc / table, 4)
        if fields[1].rpartition(":")[2] == f"{int(port):04X}"
    }
    return {_LISTEN, _ESTABLISHED} <= states


def _lines(table: Path, least: int) -> Iterator[list[str]]:
    try:
        text = table.read_text("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= least:
            yield fields
