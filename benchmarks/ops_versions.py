"""One built wheel under several torch versions: the oldest it is for, a CPU-only one, the newest.

    python benchmarks/ops_versions.py [--torch 2.11.0 2.13.0 newest] [--wheel W.whl] [--root DIR]

Makes an environment a version, installs torch and the wheel (no other dependency), and runs this
file there with --smoke: load, self-test of every op, opcheck, gradients, compile, export; and where
there is an nvcc, the CUDA sources are compiled with the headers of that torch. The environments are
removed again; each needs up to 7 GB and a download of half of that.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Without PYTHONPATH: pip and the smoke run must see the environment alone, not the source tree.
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", nargs="+", default=["2.11.0", "2.13.0", "newest"])
    parser.add_argument("--wheel", type=Path, help="default: build one for the CPU")
    parser.add_argument("--root", type=Path, help="where environments go; default: a temporary one")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ops_versions.json"))
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        print(json.dumps(smoke()))
        return
    wheel = (args.wheel or build_wheel()).resolve()
    print(f"wheel {wheel.name}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.root) as root:
        rows = [try_version(version, wheel, Path(root)) for version in args.torch]
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(row["torch"], "python", row["python"], "build", row["build"])
        print("   ", ", ".join(f"{name} {outcome}" for name, outcome in row["checks"].items()))
    faults = [name for row in rows for name, said in row["checks"].items() if said != "ok"]
    sys.exit(1 if faults else 0)


def build_wheel() -> Path:
    """Builds the CPU wheel with this environment's torch and returns it."""
    folder = ROOT / "build" / "versions"
    shutil.rmtree(folder, ignore_errors=True)
    for left_over in (ROOT / "build").glob("lib*"):
        shutil.rmtree(left_over)
    pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(ROOT))
    return next(folder.glob("d2det-*.whl"))


def try_version(version: str, wheel: Path, root: Path) -> dict[str, Any]:
    """Returns what the smoke run says in a fresh environment with that torch."""
    folder = root / f"torch-{version}"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip(python, "install", "torch" if version == "newest" else f"torch=={version}", "numpy")
    pip(python, "install", "--no-deps", str(wheel))
    command = [python, str(Path(__file__).resolve()), "--smoke"]
    done = subprocess.run(command, cwd=root, env=CLEAN, stdout=subprocess.PIPE, check=True)
    shutil.rmtree(folder)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def pip(python: str, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--quiet", *arguments], env=CLEAN, check=True)


def smoke() -> dict[str, Any]:
    """Returns "ok" or the error of every check, in the environment that runs this."""
    import platform

    import torch

    from d2det_ops import _library
    from d2det_ops.selftest import selftest

    if _library.CPU.error is not None:
        raise RuntimeError(_library.CPU.error)
    checks = {f"{op} against its twin": said for op, said in selftest("cpu").items()}
    for name, check in CHECKS.items():
        try:
            check()
            checks[name] = "ok"
        except Exception as error:  # any failure of a torch version is a row of the table
            checks[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "library": str(_library.CPU.path),
        "build": _library.CPU.digest,
        "checks": checks,
    }


def opcheck_all() -> None:
    import torch

    from d2det_ops import _library

    torch.manual_seed(0)
    corner = torch.rand(12, 2) * 30
    boxes, scores = torch.cat((corner, corner + 9), 1), torch.rand(12, 3)
    maps = [torch.rand(1, 8, 16, 16, requires_grad=True), torch.rand(1, 8, 8, 8)]
    rois = torch.cat((torch.zeros(12, 1), boxes), 1)
    offsets = torch.rand(12, 2, 2, 2, requires_grad=True)
    x, weight = torch.rand(4, 8, 6, 6, requires_grad=True), torch.rand(8, requires_grad=True)
    samples = {
        "nms": (boxes, scores[:, 0], None, 0.3, False, -1),
        "soft_nms": (boxes, scores, False, 0.5, 0.5, 1e-3),
        "masks_to_rle": (torch.rand(12, 7, 7), boxes, 50, 60, 0, 0, 0.5, False),
        "assign_targets": (boxes, boxes[:3] + 1, 0.3, 0.3),
        "deform_roi_pool": (
            maps,
            rois,
            torch.arange(12) % 2,
            offsets,
            [0.25, 0.125],
            4,
            2,
            0.1,
            False,
        ),
        "adaptive_pool": (x, x.detach().cos(), weight, weight, 1e-5, 12.0, 3, 2, 1),
    }
    assert set(samples) == set(_library.OPS)
    for op, sample in samples.items():
        torch.library.opcheck(_library.op(op), sample)


def gradients() -> None:
    import torch

    from d2det_ops import adaptive_pool, deform_roi_pool

    torch.manual_seed(0)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    affine = torch.rand(3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, a: adaptive_pool(x, x.cos(), a, a), (x, affine))
    rois = torch.tensor([[0.0, 3.0, 3.0, 17.0, 15.0]], dtype=torch.float64)
    level = torch.zeros(1, dtype=torch.int64)
    offsets = torch.rand(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def pool(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return deform_roi_pool(
            [x], rois, level, strides=[4], output_size=2, samples=2, offsets=offsets
        )

    torch.autograd.gradcheck(pool, (x, offsets))


def compiled_and_exported() -> None:
    import torch

    from d2det_ops import nms, soft_nms

    class Last(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return nms(boxes, soft_nms(boxes, scores)[:, 0], 0.5)

    corner = torch.rand(40, 2) * 30
    arguments = (torch.cat((corner, corner + 9), 1), torch.rand(40, 3))
    expected = Last()(*arguments)
    compiled = torch.compile(Last(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), expected)
    assert torch.equal(torch.export.export(Last(), arguments).module()(*arguments), expected)


def cuda_sources() -> None:
    """Compiles them without optimisation: what counts is what the headers declare."""
    from torch.utils.cpp_extension import include_paths

    stable_abi = re.search(
        r"^STABLE_ABI = (\[.+\])$", (ROOT / "setup.py").read_text(), re.MULTILINE
    )
    assert stable_abi is not None
    folders = [ROOT / "ops/csrc", ROOT / "build/generated", *include_paths("cpu")]
    command = ["nvcc", "-c", "-o", os.devnull, "-std=c++20", "-arch=sm_90", "-Xcicc=-O0"]
    command += ["-Xptxas=-O0", *ast.literal_eval(stable_abi[1]), *(f"-I{path}" for path in folders)]
    sources = sorted((ROOT / "ops/csrc/cuda").glob("*.cu"))
    assert sources
    for source in sources:
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        faults = [line for line in done.stderr.splitlines() if "error" in line]
        if done.returncode != 0:
            raise RuntimeError(faults[0] if faults else f"nvcc fails on {source.name}")


CHECKS = {
    "opcheck of every op": opcheck_all,
    "gradcheck in float64": gradients,
    "compile and export": compiled_and_exported,
    **({"CUDA sources compile": cuda_sources} if shutil.which("nvcc") else {}),
}


if __name__ == "__main__":
    main()
