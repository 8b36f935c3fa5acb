import threading
import time

import pytest
import torch

from d2det import rng
from d2det.config import InputConfig, TrainConfig
from d2det.data.coco import CocoDataset
from d2det.data.loader import TrainingLoader

INPUT = InputConfig(short_side=32, long_side=64)
TRAIN = TrainConfig(global_batch=4, seed=5, vertical_flip=0.5, short_sides=(32, 48))


@pytest.fixture
def data(make_coco):
    sizes = [(40, 60) if i % 3 else (60, 40) for i in range(13)]
    rows = [
        {
            "id": i + 1,
            "image_id": i % 12 + 1,
            "category_id": 1,
            "bbox": [3 + i, 5, 12, 9 + i],
            "segmentation": [[3 + i, 5, 15 + i, 5, 9 + i, 14 + i]],
        }
        for i in range(20)
    ]
    return CocoDataset(*make_coco(sizes, rows))


def flat(batches):
    """Everything of the batches that must not depend on who loads them, a picture a row."""
    rows = []
    for batch in batches:
        for i, key in enumerate(batch.image_keys):
            height, width = batch.images.sizes[i].tolist()
            pixels = batch.images.pixels[i, :, :height, :width]
            target = batch.targets[i]
            masks = target.masks.pixels.tolist(), target.masks.rectangles.tolist()
            rows.append((key, pixels.sum().item(), target.boxes.tolist(), masks))
    return rows


def test_every_picture_comes_once_an_epoch_whatever_the_threads(data):
    one, many = (TrainingLoader(data, INPUT, TRAIN, num_threads=n) for n in (1, 5))
    expected = flat(one.batches(2))
    assert sorted(row[0] for row in expected) == sorted(
        rng.key(5, 2, image_id) for image_id in range(1, 14)
    )
    assert flat(many.batches(2)) == expected


def test_the_ranks_together_see_what_one_rank_sees(data):
    loader = TrainingLoader(data, INPUT, TRAIN)
    cuts = [lambda n: slice(0, n // 2), lambda n: slice(n // 2, n), lambda n: slice(n, n)]
    ranks = [list(loader.batches(0, share=cut)) for cut in cuts]
    assert {len(batches) for batches in ranks} == {4}
    steps = [flat(batches) for batches in zip(*ranks, strict=True)]
    assert [row for step in steps for row in step] == flat(loader.batches(0))


def test_parts_of_a_batch_are_padded_alike_whoever_computes_them(data):
    loader = TrainingLoader(data, InputConfig(short_side=60, long_side=100), TRAIN)
    cuts = [slice(0, 1), slice(1, 4)]
    parts = [list(loader.batches(0, share=lambda n, cut=cut: cut)) for cut in cuts]
    whole = [batch.images.pixels.shape[2:] for batch in loader.batches(0)]
    assert len(set(whole)) > 1
    for part in parts:
        shapes = [batch.images.pixels.shape[2:] for batch in part]
        empty = [len(batch) == 0 for batch in part]
        assert [s for s, e in zip(shapes, empty, strict=True) if not e] == [
            s for s, e in zip(whole, empty, strict=True) if not e
        ]


def test_a_rank_without_pictures_gets_sound_empty_batches(data):
    loader = TrainingLoader(data, INPUT, TRAIN)
    batch = next(loader.batches(0, share=lambda n: slice(0, 0)))
    assert len(batch) == 0
    assert batch.images.pixels.shape == (0, 3, 32, 32)


def test_loading_goes_on_from_any_step(data):
    loader = TrainingLoader(data, INPUT, TRAIN)
    whole = [flat([batch]) for batch in loader.batches(1)]
    assert [flat([batch]) for batch in loader.batches(1, first_step=2)] == whole[2:]


def test_a_dropped_iterator_cancels_what_it_prepared(data):
    loader = TrainingLoader(data, INPUT, TRAIN)
    next(loader.batches(0))
    assert [flat([b]) for b in loader.batches(0)] == [flat([b]) for b in loader.batches(0)]


def test_an_unreadable_picture_ends_the_iteration_with_its_name(data, tmp_path):
    (tmp_path / "images" / "6.png").write_bytes(b"no picture")
    loader = TrainingLoader(data, INPUT, TRAIN)
    with pytest.raises(ValueError, match=r"6\.png: not_image"):
        list(loader.batches(0))


def test_little_is_prepared_ahead(data):
    """Memory is bounded: a slow consumer stops the threads after a few batches."""
    started = []

    class Counting:
        index = data.index

        def __getitem__(self, position):
            started.append(threading.get_ident())
            return data[position]

    train = TrainConfig(global_batch=1)
    batches = TrainingLoader(Counting(), INPUT, train, num_threads=1).batches(0)
    next(batches)
    time.sleep(0.2)
    assert len(started) <= 4


def test_a_rank_without_pictures_prepares_little_ahead_too(data):
    asked = []

    def nothing(count):
        asked.append(count)
        return slice(0, 0)

    loader = TrainingLoader(data, INPUT, TrainConfig(global_batch=1), num_threads=1)
    next(loader.batches(0, share=nothing))
    assert len(asked) <= 4


def test_batches_are_normalised_and_padded(data):
    batch = next(TrainingLoader(data, INPUT, TRAIN).batches(0))
    assert batch.images.pixels.dtype == torch.float32
    assert all(side % 32 == 0 for side in batch.images.pixels.shape[2:])
    assert abs(batch.images.pixels.mean()) < 1
