"""A detector at work: equal to the Python door, whatever shares its batches; and healthy or not."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from d2det.inference.decode import decode_image
from d2det.inference.options import PredictOptions
from d2det.inference.predictor import Predictor
from d2det.inference.results import image_row
from d2det.inference.windows import ArrayScene, cut_windows
from d2det_platform.serve.courier import Courier
from d2det_platform.serve.engine import Engine
from d2det_platform.serve.messages import Job, Reply
from d2det_platform.serve.metrics import MemoryRecorder
from d2det_platform.serve.model import CallableModel, describe
from d2det_platform.serve.options import Batching
from d2det_platform.serve.predictors import WeightsModel
from d2det_platform.serve.windows import predict_scene
from tests.platform.serve.endpoint import CATEGORIES, jpeg, quadrants
from tests.shared import shared_dir

SIZES = [(50, 70), (51, 70), (90, 60), (64, 96), (50, 70), (33, 40)]


def jobs_of(pictures: list[bytes], **fields: object) -> list[Job]:
    return [Job(data, decode_image(data).shape[:2], **fields) for data in pictures]  # type: ignore[arg-type]


def held_until(go: threading.Event) -> CallableModel:
    """A model that answers nothing before `go` is set."""

    def predict(images: list) -> list:
        go.wait(5)
        return quadrants(images)

    return CallableModel(predict)


@pytest.fixture(scope="module")
def model(small_weights: Path) -> WeightsModel:
    return WeightsModel(small_weights, PredictOptions())


def test_answers_equal_the_python_door_alone_and_in_company(
    model: WeightsModel, small_weights: Path
) -> None:
    predictor = Predictor.load(small_weights)
    pictures = [jpeg(*size, seed=i) for i, size in enumerate(SIZES)]
    expected = [
        image_row("", found, predictor.categories)
        for found in predictor.predict([decode_image(p) for p in pictures])
    ]

    async def check() -> None:
        engine = Engine(model, predictor.categories)
        together = await engine.run(jobs_of(pictures))
        alone = [(await engine.run([job]))[0] for job in jobs_of(pictures)]
        for answers in (together, alone):
            for answer, row in zip(answers, expected, strict=True):
                assert answer.row is not None
                found = answer.row["detections"]
                assert len(found) == len(row.detections) > 0
                for a, b in zip(found, row.detections, strict=True):
                    assert (a["label"], a["category_id"]) == (b.label, b.category_id)
                    assert np.allclose(a["bbox"], b.bbox, atol=1e-3)
        engine.close()

    asyncio.run(check())


def test_without_masks_the_boxes_are_the_same(model: WeightsModel) -> None:
    async def check() -> None:
        engine = Engine(model, CATEGORIES + CATEGORIES)
        picture = [jpeg(50, 70)]
        (full,) = await engine.run(jobs_of(picture))
        (plain,) = await engine.run(jobs_of(picture, masks=False))
        assert full.row is not None
        assert plain.row is not None
        assert [d["bbox"] for d in full.row["detections"]] == [
            d["bbox"] for d in plain.row["detections"]
        ]
        assert all(d["mask"] is not None for d in full.row["detections"])
        assert all(d["mask"] is None for d in plain.row["detections"])
        engine.close()

    asyncio.run(check())


def test_a_tiled_scene_equals_that_of_the_predictor(
    model: WeightsModel, small_weights: Path
) -> None:
    scene = ArrayScene(decode_image(jpeg(150, 170)))
    predictor = Predictor.load(small_weights, PredictOptions(tile=64, overlap=20))
    expected = predictor.predict_scene(scene).detections

    async def check() -> None:
        engine = Engine(model, predictor.categories)

        async def call(jobs: list[Job]) -> Reply:
            return Reply(tuple(await engine.run(jobs)), "here")

        found = await predict_scene(
            Courier(call),
            scene,
            cut_windows(scene.size, tile=64, overlap=20),
            masks=True,
            deadline=1e12,
        )
        assert found.size == expected.size
        assert len(found) == len(expected) > 5
        assert torch.equal(found.labels, expected.labels)
        assert torch.allclose(found.boxes, expected.boxes, atol=1e-3)
        engine.close()

    asyncio.run(check())


def test_real_pictures_equal_the_python_door(model: WeightsModel, small_weights: Path) -> None:
    pictures = [p.read_bytes() for p in sorted(shared_dir("data", "bccd", "images").iterdir())[:6]]
    predictor = Predictor.load(small_weights)

    async def check() -> None:
        engine = Engine(model, predictor.categories)
        answers = await engine.run(jobs_of(pictures))
        for answer, data in zip(answers, pictures, strict=True):
            (found,) = predictor.predict([decode_image(data)])
            assert answer.row is not None
            boxes = [d["bbox"] for d in answer.row["detections"]]
            assert np.allclose(boxes, found.boxes.numpy(), atol=1e-3)
        engine.close()

    asyncio.run(check())


def test_jobs_of_several_calls_share_batches_within_the_budget() -> None:
    batches: list[int] = []
    go = threading.Event()

    def predict(images: list) -> list:
        go.wait(5)
        batches.append(len(images))
        return quadrants(images)

    async def check() -> None:
        engine = Engine(CallableModel(predict), CATEGORIES, max_pixels=5 * 2400)
        calls = [asyncio.create_task(engine.run(jobs_of([jpeg()] * 3))) for _ in range(3)]
        await asyncio.sleep(0.2)
        go.set()
        await asyncio.gather(*calls)
        assert sum(batches) == 9
        assert max(batches) == 5
        engine.close()

    asyncio.run(check())


def test_bad_pictures_answer_for_themselves() -> None:
    async def check() -> None:
        recorder = MemoryRecorder()
        engine = Engine(CallableModel(quadrants), CATEGORIES, recorder=recorder)
        bad = Job(jpeg()[:-30], (40, 60))
        good, truncated = await engine.run([*jobs_of([jpeg()]), bad])
        assert good.row is not None
        assert truncated.reason in ("truncated", "corrupt")
        (late,) = await engine.run(jobs_of([jpeg()], budget_s=0.0))
        assert late.reason == "late"
        assert recorder.total("d2det_pictures") == 1
        engine.close()

    asyncio.run(check())


def test_a_busy_engine_answers_in_time_or_says_late() -> None:
    """Whoever was let in waits for as long as its budget lasts, however many are ahead."""
    go = threading.Event()

    async def check() -> None:
        batching = Batching(max_pictures=2)
        engine = Engine(held_until(go), CATEGORIES, batching=batching)
        patient = asyncio.create_task(engine.run(jobs_of([jpeg()] * 100, budget_s=30)))
        await asyncio.sleep(0.2)  # the first batch is with the model, the others wait
        (late,) = await asyncio.wait_for(engine.run(jobs_of([jpeg()], budget_s=0.3)), 3)
        assert late.reason == "late"
        go.set()
        assert [answer.reason for answer in await patient] == [None] * 100
        engine.close()

    asyncio.run(check())


def test_health_is_that_of_the_model() -> None:
    works = True

    def predict(images: list) -> list:
        if not works:
            raise RuntimeError("CUDA error")
        return quadrants(images)

    async def check() -> None:
        nonlocal works
        engine = Engine(CallableModel(predict), CATEGORIES)
        await engine.check(idle_s=0, hang_s=5)
        works = False
        await engine.check(idle_s=60, hang_s=5)  # it has just shown that it works
        with pytest.raises(RuntimeError, match="fails on a trial"):
            await engine.check(idle_s=0, hang_s=5)
        engine.close()

    asyncio.run(check())


def test_a_hanging_batch_is_ill_health() -> None:
    go = threading.Event()

    async def check() -> None:
        engine = Engine(held_until(go), CATEGORIES)
        running = asyncio.create_task(engine.run(jobs_of([jpeg()])))
        await asyncio.sleep(0.2)
        with pytest.raises(RuntimeError, match="has been running"):
            await engine.check(idle_s=0, hang_s=0.1)
        go.set()
        await running
        engine.close()

    asyncio.run(check())


def test_decoding_ahead_is_bounded() -> None:
    go = threading.Event()
    decoded = 0

    def predict(images: list) -> list:
        go.wait(5)
        return quadrants(images)

    class Counting(MemoryRecorder):
        def add(self, name: str, value: float = 1, **tags: str) -> None:
            nonlocal decoded
            decoded += name == "d2det_decode_ms"

    async def check() -> None:
        batching = Batching(max_decoded_pixels=3 * 2400)
        engine = Engine(CallableModel(predict), CATEGORIES, batching=batching, recorder=Counting())
        running = asyncio.create_task(engine.run(jobs_of([jpeg()] * 8)))
        await asyncio.sleep(0.3)
        assert decoded == 3
        go.set()
        answers = await running
        assert all(answer.row is not None for answer in answers)
        engine.close()

    asyncio.run(check())


def test_warm_up_touches_the_usual_shapes_first_and_keeps_to_its_time(
    model: WeightsModel, small_weights: Path
) -> None:
    sizes = model.warm_up_sizes()
    shapes = [model.bucket(*size) for size in sizes]
    assert len(set(shapes)) == len(shapes)
    assert {model.bucket(*s) for s in [(480, 640), (1080, 1920), (640, 480)]} <= set(shapes[:7])
    engine = Engine(model, CATEGORIES)
    assert 0 < engine.warm_up(0.0) <= 7
    engine.close()
    info = describe(small_weights, None, "m")
    assert info.has_masks
    assert info.max_detections == 10
