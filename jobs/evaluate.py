"""Scores weights on annotated pictures with all workers of a cluster.

    ray job submit --working-dir . -- python jobs/evaluate.py --annotations val.json --images val/ \
        --weights w.safetensors --out s3://scores/run-1
"""

from d2det_platform.label.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
