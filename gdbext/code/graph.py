"""Walks over the instructions of an exploration, both ways, bounded in steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gdbext.code.paths import Reach

Stop = Callable[[int], bool]
"""Tells whether a walk ends at an address (which still belongs to it)."""


class Graph:
    """The edges of `reach` that run without completing a call: within functions, and from a call into its target.

    What lies between an entry and its ``swapgs``, or between a ``swapgs`` and the exit, never completes a call of
    compiled code; so the walks treat the return of a call as a wall. ``returns``: return address → its call.
    """

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._walls = {branch.address for branch in reach.indirect if branch.call}
        self.returns = {reach.successors[call][0]: call for call in reach.calls if reach.successors.get(call)}
        self.returns |= {reach.successors[call][0]: call for call in self._walls if reach.successors.get(call)}
        self._before: dict[int, list[int]] = {}
        for address in reach.successors:
            for following in self.after(address):
                self._before.setdefault(following, []).append(address)

    def after(self, address: int) -> tuple[int, ...]:
        """Where control goes from the instruction at `address`."""
        if address in self._walls:
            return ()
        target = self._reach.calls.get(address)
        return (target,) if target is not None else self._reach.successors.get(address, ())

    def before(self, address: int) -> list[int]:
        """The instructions from which control comes to `address`, except by return from a call."""
        return self._before.get(address, [])

    def forward(self, starts: Iterable[int], stop: Stop, steps: int, within: set[int] | None = None) -> set[int]:
        """All addresses at most `steps` instructions after `starts` (included), not beyond `stop`."""
        return _walk(self.after, starts, stop, steps, within)

    def backward(self, starts: Iterable[int], stop: Stop, steps: int, within: set[int] | None = None) -> set[int]:
        """All addresses at most `steps` instructions before `starts` (included), not beyond `stop`."""
        return _walk(self.before, starts, stop, steps, within)

    def always(self, nodes: set[int], openers: set[int]) -> set[int]:
        """Those of `nodes` to which every known way leads through an opener: the others run both with and without."""
        certain = set(nodes)
        work = deque(nodes)
        while work:
            node = work.popleft()
            if node not in certain:
                continue
            before = self.before(node)
            if not before or any(p not in openers and p not in certain for p in before):
                certain.discard(node)
                work.extend(n for n in self.after(node) if n in certain)
        return certain


def _walk(
    edges: Callable[[int], Iterable[int]], starts: Iterable[int], stop: Stop, steps: int, within: set[int] | None
) -> set[int]:
    seen = set(starts)
    work = deque((address, 0) for address in seen)
    while work:
        address, distance = work.popleft()
        if distance >= steps or stop(address):
            continue
        for following in edges(address):
            if following not in seen and (within is None or following in within):
                seen.add(following)
                work.append((following, distance + 1))
    return seen
