"""What a command asks of the guest before it runs."""

from __future__ import annotations

from enum import Enum


class Needs(Enum):
    """What must be so before a command runs."""

    NOTHING = "nothing"
    GUEST = "a guest that stands still"
    WATCH = "a watch, and its guest stands still"
    RUNNING_WATCH = "a watch, whatever its guest does"
