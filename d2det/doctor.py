"""`d2det doctor`: what is installed here, and what to mend."""

from __future__ import annotations

from typing import Annotated

import tyro

from d2det.config import Config


class DoctorCommand(Config):
    """Says which torch, GPU and compiled ops are in use, and what to do if something is wrong.

    The exit code is 1 when something needs doing.
    """

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print the report as JSON."""


def run(options: DoctorCommand) -> int:
    """Prints the report and returns the exit code."""
    from d2det_ops.doctor import format_report, report  # imports torch; --help must not

    found = report()
    print(found.to_json() if options.as_json else format_report(found))
    return 0 if found.healthy else 1
