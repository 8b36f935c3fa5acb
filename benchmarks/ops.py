"""The compiled ops against their twins and what else exists, by CPU time on one thread.

    python benchmarks/ops.py [--only NAME ...] [--compile] [--json OUT]

Both sides run in turn in one process; the ratio is theirs over ours.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import detector_ops
import pooling_ops
import post_processing_ops
from measure import report

from d2det_ops import _library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose names contain these")
    parser.add_argument("--compile", action="store_true", help="also against torch.compile")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ops.json"))
    args = parser.parse_args()
    print(_library.summary())
    cases = itertools.chain(
        post_processing_ops.cases(),
        pooling_ops.cases(compiled=args.compile),
        detector_ops.cases(),
    )
    chosen = (case for case in cases if any(part in case.name for part in args.only))
    report("compiled ops, CPU time on one thread", chosen, args.json)
    print("maps kept for the backward of adaptive_pool:", pooling_ops.kept_for_backward())


if __name__ == "__main__":
    main()
