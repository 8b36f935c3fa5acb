import pytest
import torch
from torch import Tensor

from d2det import rng
from d2det.config import RegressionConfig, RoiSamplerConfig
from d2det.models.matching import IGNORED, NEGATIVE
from d2det.models.rpn import Proposals
from d2det.models.sampling import RoiSamples, sample, sample_positives, sample_rois
from d2det.structures import ImageBatch, Target, TrainingBatch

NUM_CLASSES = 5


def assignment(positives: int, negatives: int, ignored: int) -> Tensor:
    values = [0] * positives + [NEGATIVE] * negatives + [IGNORED] * ignored
    return torch.tensor(values)[torch.randperm(len(values), generator=torch.manual_seed(0))]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(300, 5000, (128, 128)), (10, 5000, (10, 246)), (300, 50, (128, 50)), (0, 0, (0, 0))],
    ids=["enough", "few positives", "few negatives", "none"],
)
def test_counts(positives: int, negatives: int, expected: tuple[int, int]) -> None:
    boxes = assignment(positives, negatives, 77)
    drawn = sample(boxes[None], count=256, positive_fraction=0.5, keys=torch.tensor([[1]]))
    assert tuple(map(len, drawn)) == expected
    assert (drawn[0].of(boxes[None]) >= 0).all()
    assert (drawn[1].of(boxes[None]) == NEGATIVE).all()
    for part in drawn:
        assert torch.equal(part.position, part.position.unique())


def test_every_candidate_is_drawn_equally_often() -> None:
    boxes = assignment(40, 60, 5)
    keys = torch.arange(2000)[:, None]
    drawn = sample(boxes.expand(2000, -1), count=20, positive_fraction=0.5, keys=keys)
    rates = torch.cat([part.position for part in drawn]).bincount(minlength=len(boxes)) / 2000
    assert (rates[boxes >= 0] - 10 / 40).abs().max() < 0.05
    assert (rates[boxes == NEGATIVE] - 10 / 60).abs().max() < 0.05


def test_what_is_drawn_is_the_least_by_the_key_whatever_the_company() -> None:
    pictures = [assignment(30, 400, 5), assignment(0, 435, 0), assignment(3, 9, 423)]
    keys, limits = [11, 12, 13], {"count": 64, "positive_fraction": 0.25}
    together = sample(torch.stack(pictures), keys=torch.tensor(keys)[:, None], **limits)
    for i, (boxes, key) in enumerate(zip(pictures, keys, strict=True)):
        order = rng.uniform(torch.arange(len(boxes)), torch.tensor(key)).argsort()
        positives = [j for j in order.tolist() if boxes[j] >= 0][:16]
        negatives = [j for j in order.tolist() if boxes[j] == NEGATIVE][: 64 - len(positives)]
        for part, wanted in zip(together, (positives, negatives), strict=True):
            assert part.position[part.image_index == i].tolist() == sorted(wanted)


def test_boxes_count_by_their_numbering() -> None:
    """As anchors do of which more lie outside, where a batch was padded further."""
    boxes = assignment(40, 400, 0)
    place = torch.arange(440) * 2 + 1
    spread = torch.full((881,), IGNORED).scatter(0, place, boxes)
    numbering = torch.zeros(881, dtype=torch.int64).scatter(0, place, torch.arange(440))
    limits = {"count": 64, "positive_fraction": 0.25, "keys": torch.tensor([[7]])}
    tight = sample(boxes[None], **limits)
    for found, wanted in zip(
        sample(spread[None], numbering=numbering[None], **limits), tight, strict=True
    ):
        assert torch.equal(found.position, place[wanted.position])


def picture(seed: int, num_gts: int, num_proposals: int) -> tuple[Target, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(num_gts, 2, generator=generator) * 150
    gts = torch.cat((low, low + 10 + torch.rand(num_gts, 2, generator=generator) * 40), 1)
    owner = torch.randint(0, max(num_gts, 1), (num_proposals,), generator=generator)
    around = gts[owner] if num_gts else torch.tensor([20.0, 20, 60, 60]).expand(num_proposals, 4)
    proposals = around + torch.randn(num_proposals, 4, generator=generator) * 6
    labels = torch.randint(0, NUM_CLASSES, (num_gts,), generator=generator)
    return Target(gts, labels), proposals


def draw(members: list[int]) -> tuple[RoiSamples, RoiSamples, TrainingBatch]:
    """Samples and jittered positives of some of six pictures, as one batch."""
    pictures = [picture(i, num_gts=(4, 9, 0, 1, 30, 6)[i], num_proposals=40 + i) for i in members]
    batch = TrainingBatch(
        ImageBatch(torch.zeros(len(members), 3, 32, 32), torch.full((len(members), 2), 200)),
        tuple(target for target, _ in pictures),
        tuple(members),
    )
    boxes = torch.cat([boxes for _, boxes in pictures])
    index = torch.cat([torch.full((len(b),), i) for i, (_, b) in enumerate(pictures)])
    proposals = Proposals(boxes, torch.zeros(len(boxes)), index)
    config = RoiSamplerConfig(samples_per_image=16)
    samples = sample_rois(proposals, batch, num_classes=NUM_CLASSES, config=config)
    positives = sample_positives(samples, batch, RegressionConfig(max_samples_per_image=3))
    return samples, positives, batch


@pytest.mark.parametrize("cut", [[3, 3], [4, 2], [1] * 6, [2, 3, 1]])
def test_draws_do_not_depend_on_how_the_batch_is_cut(cut: list[int]) -> None:
    whole = draw(list(range(6)))
    parts = [draw(part.tolist()) for part in torch.arange(6).split(cut)]
    for stage in range(2):
        for name in ("boxes", "labels"):
            joined = torch.cat([getattr(part[stage], name) for part in parts])
            assert torch.equal(joined, getattr(whole[stage], name))


def test_samples_know_their_ground_truth() -> None:
    samples, _, batch = draw(list(range(6)))
    labels = torch.cat([target.labels for target in batch.targets])
    picture_of = torch.cat([torch.full((len(t),), i) for i, t in enumerate(batch.targets)])
    positive = samples.owners >= 0
    assert torch.equal(samples.labels[positive], labels[samples.owners[positive]])
    assert torch.equal(samples.image_index[positive], picture_of[samples.owners[positive]])
    assert (samples.labels[~positive] == NUM_CLASSES).all()
    assert samples.image_index.bincount().max() <= 16
    assert samples.image_index[positive].bincount(minlength=6).max() == 4  # a quarter of 16


def test_jitter_stays_within_its_limits_and_the_picture() -> None:
    samples, positives, _ = draw([0, 1, 3, 4, 5])
    for box, owner in zip(positives.boxes, positives.owners, strict=True):
        before = samples.boxes[samples.owners == owner]
        size = before[:, 2:] - before[:, :2] - 1
        near = ((box - before).abs() <= (0.15 + 0.075) * size.repeat(1, 2) + 1e-3).all(1)
        assert near.any()
    assert positives.boxes.min() >= 0
    assert positives.boxes.max() <= 200
    assert positives.image_index.bincount().max() == 3
    assert not torch.isin(positives.boxes[:, 0], samples.boxes[:, 0]).all()


def test_the_usual_regression_learns_from_the_proposals_as_they_are() -> None:
    samples, _, batch = draw([0, 4])
    positives = sample_positives(samples, batch, RegressionConfig(kind="delta"))
    assert torch.equal(positives.boxes, samples.boxes[samples.owners >= 0])
