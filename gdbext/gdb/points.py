"""The breakpoints of the collector."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gdb


class Point(gdb.Breakpoint):  # type: ignore[misc]  # GDB's classes have no types
    """An internal breakpoint: not in the user's list, without a message of its own when it stops."""

    def __init__(self, address: int, hit: Callable[[int], bool]) -> None:
        super().__init__(f"*{address:#x}", gdb.BP_BREAKPOINT, internal=True)
        self.silent = True
        self.address = address
        self._hit = hit

    def stop(self) -> bool:
        """Called by GDB at the breakpoint; True stops the guest for the user."""
        return self._hit(self.address)


class Points:
    """All breakpoints of one watch, by address. ``hit`` is called at each stop and says whether to stop the guest."""

    def __init__(self, hit: Callable[[int], bool]) -> None:
        self._hit = hit
        self._points: dict[int, Point] = {}

    def __len__(self) -> int:
        return len(self._points)

    def cover(self, addresses: Iterable[int]) -> None:
        """Make sure there is a breakpoint at each address. May be called from a stop."""
        for address in addresses:
            if address not in self._points:
                self._points[address] = Point(address, self._hit)

    def keep_only(self, addresses: Iterable[int]) -> None:
        """Delete the others. Not from a stop, and not while the guest runs."""
        for address in self._points.keys() - set(addresses):
            _delete(self._points.pop(address))

    def clear(self) -> None:
        """Delete all."""
        self.keep_only(())


def _delete(point: Point) -> None:
    try:
        if point.is_valid():
            point.delete()
    except gdb.error:
        pass  # the target went away in between: GDB forgets the location with it
