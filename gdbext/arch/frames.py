"""What the CPU pushes at an interrupt and what the return instructions read.

Intel SDM vol. 3A, 6.12.1 (figure 6-4, ia32) and 6.14.2–6.14.4 (IA-32e mode). All offsets are in words of the mode's
size from the address of the frame, which in ctxwatch is always that of its RIP word (the error code, if there is
one, lies one word below).
"""

from __future__ import annotations

from typing import Final

RIP_WORD, CS_WORD, RFLAGS_WORD, RSP_WORD, SS_WORD = range(5)
FRAME_FIELDS: Final = ("rip", "cs", "rflags", "rsp", "ss")
"""Event columns of the frame's words in order."""


def word_size(bits: int) -> int:
    """Bytes in one word of the frame of a `bits`-bit handler."""
    return 8 if bits == 64 else 4


def words_pushed(bits: int, cpl_from: int, cpl_to: int) -> int:
    """Words in the frame: always 5 in 64-bit mode; ia32 pushes SS:ESP only when the privilege changes."""
    return 5 if bits == 64 or cpl_from != cpl_to else 3
