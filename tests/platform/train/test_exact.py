"""The training does not depend on how a global batch is cut over ranks."""

from pathlib import Path

import pytest

from d2det.data.coco import CocoDataset
from tests.platform.train.cuts import (
    CUTS,
    PASSES,
    differences,
    options_of,
    run_losses,
    train_cuts,
)
from tests.platform.train.group import in_processes


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_gradients_and_trajectories_do_not_depend_on_the_cut(tmp_path: Path, steps: int) -> None:
    """In float64, where no rounding tips a choice (which anchor, which proposal) over."""
    run = options_of(tmp_path)
    dataset = CocoDataset(run.data.train_images, run.data.train_annotations)
    shapes = {round(float(w / h), 1) for h, w in dataset.index.image_sizes.tolist()}
    assert len(shapes) > 3, "pictures of one shape would prove little"
    gradients = in_processes(3, train_cuts, run, tmp_path, "f64", steps)[0]
    wanted = run_losses(run, "f64", (6,))
    assert len(wanted) == steps
    for cut in (*CUTS[1:], PASSES):
        assert max(differences(gradients[cut], gradients[(6,)])) < 1e-7, cut
        assert run_losses(run, "f64", cut) == pytest.approx(wanted, rel=1e-10), cut
