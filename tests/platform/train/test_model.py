"""The weights a training starts with."""

from pathlib import Path

import torch

from d2det.data.coco import CocoDataset
from d2det.data.synthetic import write_dataset
from d2det_platform.train import model
from tests.platform.train.group import scene_options
from tests.threads import threads


def test_a_training_from_scratch_starts_alike_whatever_the_number_of_threads(
    scenes: Path, tmp_path: Path
) -> None:
    options, found = scene_options(scenes, tmp_path), []
    data = CocoDataset(options.data.train_images, options.data.train_annotations)
    for count in (1, 2):
        with threads(count):
            found.append(model.build_model(options, data.categories, data).state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


def test_statistics_come_from_the_middle_of_large_pictures(tmp_path: Path) -> None:
    write_dataset(tmp_path, split="train", num_images=2, size=(600, 900))
    options = scene_options(tmp_path, tmp_path, input__short_side=600, input__long_side=1000)
    data = CocoDataset(options.data.train_images, options.data.train_annotations)
    pixels = model._some_pictures(options, data)
    mean, std = (torch.tensor(x)[:, None, None] for x in (options.input.mean, options.input.std))
    assert pixels.shape == (2, 3, 512, 512)
    for slot, sample in zip(pixels, (data[0], data[1]), strict=True):
        middle = torch.from_numpy(sample.image[44:556, 194:706].copy()).permute(2, 0, 1)
        torch.testing.assert_close(slot * std + mean, middle.float(), rtol=0, atol=1e-3)
