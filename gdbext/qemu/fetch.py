"""Run as a program, this fetches and builds what the bundled Linux guests need, once: a step of the set-up."""

from __future__ import annotations

import sys

from gdbext.errors import CtxwatchError
from gdbext.qemu import guests, linux


def main() -> None:
    """Fetch every kernel that a bundled guest names; tell each that cannot be had, and go on."""
    for kernel in dict.fromkeys(guest.linux for guest in map(guests.find, guests.names()) if guest.linux):
        try:
            linux.build(kernel)
        except CtxwatchError as error:
            print(f"{kernel.package} ({kernel.arch}): {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
