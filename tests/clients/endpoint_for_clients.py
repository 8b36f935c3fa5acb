"""Runs an endpoint with a made model for client libraries that need environments of their own.

    python -m tests.clients.endpoint_for_clients kserve=PYTHON label-studio=PYTHON

PYTHON is the interpreter of an environment that holds the library (`kserve`, `label-studio-sdk`).
Each client's script is run against the endpoint; the exit code is 0 when all of them pass.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from d2det_platform.serve.options import Outside
from tests.platform.serve.endpoint import jpeg, listening, options
from tests.platform.serve.test_labelstudio import CONFIG

HERE = Path(__file__).resolve().parent
SCRIPTS = {"kserve": "with_kserve.py", "label-studio": "with_label_studio.py"}


async def picture(url: str, limit: int, seconds: float) -> bytes:
    return jpeg(40, 60)


def main(arguments: list[str]) -> int:
    code = 0
    given = options(outside=Outside(allow_hosts=("img.example.org",)))
    with listening(given=given, fetch=picture) as address:
        for argument in arguments:
            name, _, python = argument.partition("=")
            command = [python, str(HERE / SCRIPTS[name]), address]
            done = subprocess.run(command, input=CONFIG, text=True)
            print(f"{name}: {'passed' if done.returncode == 0 else 'FAILED'}")
            code |= done.returncode
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
