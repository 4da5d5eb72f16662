"""Initial RAM file systems: cpio archives in the "newc" format (Linux, Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file. ``mode``: type and permission bits; ``device``: of a device node, as ``os.makedev`` makes it."""

    name: str
    mode: int
    content: bytes = b""
    device: int = 0


def directory(name: str) -> Entry:
    """A directory that all may enter."""
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, content: bytes) -> Entry:
    """A file that may be executed."""
    return Entry(name, stat.S_IFREG | 0o755, content)


def character_device(name: str, major: int, minor: int) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | 0o600, device=os.makedev(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of `entries`, which all belong to root; a directory must come before what is in it."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*parts, _member(0, Entry(_TRAILER, 0))])


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    owner, links, time = (0, 0), 1, 0
    fields = (number, entry.mode, *owner, links, time, len(entry.content))
    device = (0, 0, os.major(entry.device), os.minor(entry.device))
    header = "070701" + "".join(f"{value:08x}" for value in (*fields, *device, len(name), 0))
    return _padded(header.encode() + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
