"""Trains a detector on COCO-format data with Ray Train: `d2det train` as a job's entry point.

    ray job submit --working-dir . -- python jobs/train_coco.py --preset d2det_r50 \
        --data.train-images DIR --data.train-annotations FILE --storage s3://bucket/runs --name NAME
"""

import sys

from d2det_platform.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
