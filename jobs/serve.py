"""Runs the endpoint until it is stopped: `d2det serve` as a job's entry point.

python jobs/serve.py --weights w.safetensors --host 127.0.0.1 --port 8000
"""

import sys

from d2det_platform.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["serve", *sys.argv[1:]]))
