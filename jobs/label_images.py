"""Labels pictures in bulk with Ray: `d2det label` as a job's entry point.

    ray job submit --working-dir . -- python jobs/label_images.py s3://lake/ \
        --weights w.safetensors --out s3://labels/
"""

import sys

from d2det_platform.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["label", *sys.argv[1:]]))
