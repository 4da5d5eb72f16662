"""What the rules may ask about the guest's code, and nothing else."""

from __future__ import annotations

from typing import Protocol


class GuestView(Protocol):
    """Read-only access to guest code bytes and names."""

    def read(self, address: int, length: int) -> bytes:
        """Guest virtual memory; fewer bytes or OSError where it is unmapped or not captured."""

    def symbol(self, address: int) -> str | None:
        """The name of `address` as ``function+0x12``, or None."""


class NoGuest:
    """A guest of which neither bytes nor names are known."""

    def read(self, address: int, length: int) -> bytes:
        """Always unmapped."""
        raise OSError(f"no bytes were captured at {address:#x}")

    def symbol(self, address: int) -> str | None:
        """No names."""
        return None
