"""How long a boot takes when nothing disturbs it, put together from several that were disturbed.

A machine that others use, too, changes its pace by half within a second: no boot of some seconds escapes that, but of
the stretches between two lines that its kernel prints, each does so in one boot or another. So of each the fastest
counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

_TIME: Final = re.compile(r"^\[ *[0-9.]+\] ")

Marks = Sequence[tuple[str, float]]
"""The lines that a boot printed, and when (seconds from its start), in order."""


def undisturbed(boots: Sequence[Marks], others: Sequence[Marks] = ()) -> float:
    """Seconds that a boot takes: of each stretch those of the fastest of `boots`.

    others: boots that it is to be held against. The stretches lie between lines that every boot of either kind has
    printed once, in the same order. Without such lines it is 0.
    """
    times = [_once(marks) for marks in boots]
    everyone = [*times, *(_once(marks) for marks in others)]
    common: list[str] = []
    for line in times[0]:
        if all(line in other and (not common or other[line] >= other[common[-1]]) for other in everyone):
            common.append(line)
    ends = [[own[line] for line in common] for own in times]
    stretches = [[end - begin for begin, end in zip([0.0, *own], own, strict=False)] for own in ends]
    return math.fsum(min(durations) for durations in zip(*stretches, strict=True))


def _once(marks: Marks) -> dict[str, float]:
    """When each line was printed, without the kernel's own time, of those that came once."""
    lines = [(_TIME.sub("", line), when) for line, when in marks]
    often = Counter(line for line, _ in lines)
    return {line: when for line, when in lines if often[line] == 1}
