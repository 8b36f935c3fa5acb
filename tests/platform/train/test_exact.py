"""The training depends neither on how a global batch is cut nor on how many ranks come and go."""

import itertools
from pathlib import Path

import pytest

from d2det.data.coco import CocoDataset
from d2det_platform.train.options import TrainOptions
from tests.platform.train.cuts import (
    CUTS,
    PASSES,
    cut_and_resize,
    differences,
    options_of,
    run_losses,
    train_cuts,
    watch_keys,
)
from tests.platform.train.group import (
    alone,
    float64_network,
    in_processes,
    losses_of,
    scene_options,
)
from tests.threads import threads

STEPS = 2


@pytest.fixture(scope="module")
def work(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Options of both trainings, and what the three processes that did them returned."""
    folder = tmp_path_factory.mktemp("exact")
    cut = options_of(folder)
    resize = scene_options(scenes, folder, name="resized", train__epochs=3)
    return cut, resize, in_processes(3, cut_and_resize, cut, resize, folder, STEPS)


def check_cuts(options: TrainOptions, gradients: dict, steps: int) -> None:
    dataset = CocoDataset(options.data.train_images, options.data.train_annotations)
    shapes = {round(float(w / h), 1) for h, w in dataset.index.image_sizes.tolist()}
    assert len(shapes) > 3, "pictures of one shape would prove little"
    wanted = run_losses(options, "f64", (6,))
    assert len(wanted) == steps
    for cut in (*CUTS[1:], PASSES):
        assert max(differences(gradients[cut], gradients[(6,)])) < 1e-7, cut
        assert run_losses(options, "f64", cut) == pytest.approx(wanted, rel=1e-10), cut


def test_gradients_and_losses_do_not_depend_on_the_cut(work: tuple) -> None:
    """In float64, where no rounding tips a choice (which anchor, which proposal) over."""
    options, _, by_rank = work
    check_cuts(options, by_rank[0][0], STEPS)


@pytest.mark.slow
def test_long_trajectories_do_not_depend_on_the_cut(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    check_cuts(options, in_processes(3, train_cuts, options, tmp_path, "f64", 20)[0], 20)


def test_2_then_1_then_3_workers_see_every_picture_once_an_epoch_and_train_the_same(
    work: tuple,
) -> None:
    _, resized, by_rank = work
    expected: list[list[int]] = []
    whole = resized.model_copy(update={"name": "whole"})
    with float64_network(), threads(2):  # the others have one each
        trainer = alone(whole)
        watch_keys(trainer, expected)
        trainer.run()
        trainer.close()
    seen = [keys for _, keys in by_rank]
    together = [list(itertools.chain(*shares)) for shares in zip(*seen, strict=True)]
    assert together == expected
    for epoch in range(3):
        keys = list(itertools.chain(*together[3 * epoch : 3 * epoch + 3]))
        assert len(keys) == len(set(keys)) == 7
    assert losses_of(resized) == pytest.approx(losses_of(whole), rel=1e-9)
