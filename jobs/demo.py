"""Shows all of it on one machine: `make demo`, or with data of one's own `make demo DATA=folder`.

python jobs/demo.py [--data FOLDER] [--out demo_out]
"""

import sys

from d2det_platform import usage
from d2det_platform.demo.run import DemoOptions, demonstrate

if __name__ == "__main__":
    try:
        raise SystemExit(demonstrate(usage.parse(DemoOptions, sys.argv[1:], prog="demo")))
    except ValueError as error:
        print(f"demo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
