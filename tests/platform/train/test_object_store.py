"""Data and checkpoints in an object store of which a tenth of the calls fail."""

from pathlib import Path

import fsspec

from d2det_platform.store import RunStore
from d2det_platform.train import checkpoints
from d2det_platform.train.host import PlainHost
from d2det_platform.train.loop import train
from d2det_platform.train.state import TENSORS
from tests.platform.train.group import ONE, scene_options
from tests.platform.train.object_store import Flaky


def test_a_training_in_an_object_store_equals_one_on_a_disk(
    s3: Flaky, scenes: Path, tmp_path: Path
) -> None:
    local = scene_options(scenes, tmp_path, train__epochs=2, val=True, checkpoint_every_steps=1)
    assert train(local, ONE, PlainHost()).kind == "finished"
    lake = fsspec.filesystem("s3", skip_instance_cache=True)
    for _ in range(5):  # our own upload meets the failures too
        try:
            lake.put(str(scenes), "lake/scenes", recursive=True)
            break
        except OSError:
            continue
    remote = local.model_copy(
        update={
            "storage": "s3://lake/runs",
            "tensorboard": True,
            "data": local.data.model_copy(
                update={
                    "train_images": "s3://lake/scenes/train",
                    "train_annotations": "s3://lake/scenes/annotations/instances_train.json",
                    "val_images": "s3://lake/scenes/val",
                    "val_annotations": "s3://lake/scenes/annotations/instances_val.json",
                }
            ),
        }
    )
    assert train(remote, ONE, PlainHost()).kind == "finished"
    found = [checkpoints.load_latest(RunStore(run.run_url)) for run in (local, remote)]
    assert found[0].files[TENSORS] == found[1].files[TENSORS]
    assert "best.safetensors" in RunStore(remote.run_url).names("")
    assert s3.failures > 10
