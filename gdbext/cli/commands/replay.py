"""``ctxwatch replay``: judge a recorded session again."""

from __future__ import annotations

import argparse

from gdbext.cli.command import Command, argument


def _run(args: argparse.Namespace) -> int:
    from gdbext.cli.recordings import ReplayRequest, replay

    return replay(ReplayRequest(**{name: getattr(args, name) for name in ReplayRequest.__dataclass_fields__}))


COMMAND = Command(
    name="replay",
    summary="judge a recorded session again",
    details="Run the rules over a recording (an Arrow stream, or the Parquet file made from it): the same events give\n"
    "the same findings as in the live run. Another profile or other rules may be tried. It needs no QEMU and no GDB.\n"
    "\n"
    "A ring that `ctxwatch qemu-args` named is read likewise: the last events of its guest.\n"
    "\n"
    "A recording that was not finished or is damaged is used as far as it can be trusted, and that is said; with\n"
    "nothing found in it the exit status is 2, for nobody knows what the rest held. With nothing found in a run that\n"
    "lost events it is 3, as it was then.",
    example="ctxwatch run nrk-rflags --record session.arrow\nctxwatch replay session.arrow --rules CW1xx",
    arguments=(
        argument("file", metavar="FILE", help="the recording, or the ring"),
        argument("--profile", metavar="NAME|FILE", help="another profile than the recorded one"),
        argument("--rules", metavar="CODES", help="report only these codes: CW102,CW2xx"),
        argument("--json", metavar="FILE|-", help="write the result as JSON; - prints it, and nothing else"),
        argument("--max-findings", metavar="N", type=int, default=0, help="stop after N different findings"),
        argument("--verbose", "-v", action="store_true", help="show whole contexts, and how long it took"),
    ),
    run=_run,
    order=12,
)
