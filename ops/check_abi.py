"""Fails unless the compiled libraries lean on nothing but torch's stable ABI and the C++ runtime.

    python ops/check_abi.py LIBRARY...

Such a library loads under any torch from the targeted version on; a single C++ symbol of torch, or
a dependency on libtorch_python or libc10, would tie it to one.
"""

from __future__ import annotations

import re
import subprocess
import sys

ALLOWED_LIBRARIES = re.compile(
    r"lib(torch_cpu|torch_cuda|stdc\+\+|m|gcc_s|c|rt|dl|pthread)\.so|ld-linux"
)
TORCH_CXX = re.compile(r"^\s*[Uw] .*\b(at|c10|torch|caffe2)::")


def main() -> None:
    """Checks every library named on the command line."""
    faults = [fault for library in sys.argv[1:] for fault in check(library)]
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    print(f"{len(sys.argv) - 1} libraries, {len(faults)} faults")
    sys.exit(1 if faults else 0)


def check(library: str) -> list[str]:
    """Returns one line for each forbidden dependency or symbol of a library."""
    needed = re.findall(r"NEEDED.*\[(.+)\]", _run("readelf", "-d", library))
    foreign = [name for name in needed if not ALLOWED_LIBRARIES.match(name)]
    faults = [f"{library}: depends on {name}" for name in foreign]
    if "libtorch_cpu.so" not in needed:
        faults.append(f"{library}: does not name libtorch_cpu.so, so its symbols are not found")
    symbols = _run("nm", "-DC", "--undefined-only", library).splitlines()
    return faults + [
        f"{library}: uses {s.split(maxsplit=1)[1]}" for s in symbols if TORCH_CXX.match(s)
    ]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
