"""How long a boot takes when nothing disturbs it, put together from several that were disturbed.

A machine that others use, too, halves its pace for seconds: no boot of some seconds escapes that, but of the stretches
between two lines that its kernel prints, each does so in one boot or another. So of each the fastest counts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_TIME: Final = re.compile(r"^\[ *[0-9.]+\] ")

Marks = Sequence[tuple[str, float]]
"""The lines that a boot printed, and when (seconds from its start), in order."""


def undisturbed(boots: Sequence[Marks], others: Sequence[Marks] = ()) -> float:
    """Seconds that a boot takes: of each stretch those of the fastest of `boots`.

    others: boots that it is to be held against. The stretches lie between lines that every boot of either kind has
    printed once, as many of them as come in the same order in all. Without such lines it is 0.
    """
    times = [_once(marks) for marks in boots]
    everyone = [*times, *(_once(marks) for marks in others)]
    lines = [line for line in times[0] if all(line in other for other in everyone)]
    when = np.array([[other[line] for line in lines] for other in everyone])
    own = when[: len(times), _longest_chain(when)]
    return math.fsum(np.diff(own, axis=1, prepend=0.0).min(axis=0).tolist())


def _longest_chain(when: NDArray[np.float64]) -> list[int]:
    """The most columns of `when` (a row a boot, a column a line) that rise from left to right in every row. A line that
    comes at any time, as of something that goes on beside the rest, thus costs itself alone."""
    length, before = list[int](), list[int]()
    for at in range(when.shape[1]):
        fit = np.flatnonzero((when[:, :at] <= when[:, at : at + 1]).all(axis=0)).tolist()
        last = max(fit, key=lambda index: length[index], default=-1)
        length.append(length[last] + 1 if last >= 0 else 1)
        before.append(last)
    chain = list[int]()
    at = max(range(len(length)), key=lambda index: length[index], default=-1)
    while at >= 0:
        chain.append(at)
        at = before[at]
    return chain[::-1]


def _once(marks: Marks) -> dict[str, float]:
    """When each line was printed, without the kernel's own time, of those that came once."""
    lines = [(_TIME.sub("", line), when) for line, when in marks]
    often = Counter(line for line, _ in lines)
    return {line: when for line, when in lines if often[line] == 1}
