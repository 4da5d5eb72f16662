"""What stands between the batches of a recording: checksums, and what the rules learnt of the guest meanwhile."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gdbext.errors import RecordingError

KEY: Final = b"ctxwatch.mark"
SUM_KEY: Final = b"ctxwatch.sum"

MemoryRead = tuple[int, int]
"""Guest virtual address and length of a read."""


@dataclass(slots=True)
class Mark:
    """rows, first, last: how many events the batch before it holds, and the lowest and highest event number of them.
    memory: what the rules read of the guest while they judged these events; None where it was unmapped.  names: the
    symbols they were told, None where there was none.  end: the result of the run (the report document), at the end
    of a finished recording.  content: checksum of the batch's rows where the file format has none that suffices.
    """

    rows: int = 0
    first: int = 0
    last: int = 0
    memory: dict[MemoryRead, bytes | None] = field(default_factory=dict)
    names: dict[int, str | None] = field(default_factory=dict)
    end: dict[str, Any] | None = None
    content: int | None = None

    def document(self) -> dict[str, Any]:
        """The mark as a JSON object."""
        return {
            "rows": self.rows,
            "first": self.first,
            "last": self.last,
            "memory": [[start, length, _pack(data)] for (start, length), data in self.memory.items()],
            "names": list(self.names.items()),
            "end": self.end,
            "content": self.content,
        }

    def metadata(self, sum_before: int) -> dict[bytes, bytes]:
        """The metadata of the mark's batch; `sum_before`: CRC-32 of the file from the mark before to this one."""
        text = json.dumps(self.document()).encode()
        return {KEY: text, SUM_KEY: b"%08x" % zlib.crc32(text, sum_before)}


class Unit(NamedTuple):
    """One batch of a recording: where the file keeps it (None: an empty one) and the mark that goes with it."""

    place: int | None
    mark: Mark


def parse(document: Any) -> Mark:
    """The mark of a JSON object; raises RecordingError."""
    try:
        return Mark(
            rows=int(document["rows"]),
            first=int(document["first"]),
            last=int(document["last"]),
            memory={(int(start), int(length)): _unpack(data) for start, length, data in document["memory"]},
            names={int(at): None if name is None else str(name) for at, name in document["names"]},
            end=document["end"],
            content=document["content"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise RecordingError("a mark is damaged", f"{type(error).__name__}: {error}") from error


def from_metadata(metadata: Mapping[bytes, bytes], sum_before: int | None) -> Mark | None:
    """The mark in a batch's metadata, None if there is none; raises RecordingError where the checksum is wrong.

    sum_before: CRC-32 of the file from the mark before to this one, None to trust it.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    if sum_before is not None and metadata.get(SUM_KEY) != b"%08x" % zlib.crc32(text, sum_before):
        raise RecordingError("a checksum is wrong")
    try:
        return parse(json.loads(text))
    except ValueError as error:
        raise RecordingError("a mark is damaged", str(error)) from error


def _pack(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(zlib.compress(data, 1)).decode()


def _unpack(text: str | None) -> bytes | None:
    return None if text is None else zlib.decompress(base64.b64decode(text, validate=True))
