import pytest
import torch

from d2det_platform.train.options import DataOptions, TrainOptions
from d2det_platform.train.precision import choose_precision, fastest_of


def options(precision: str) -> TrainOptions:
    made = TrainOptions(data=DataOptions(train_images="-", train_annotations="-"))
    train = made.train.model_copy(update={"precision": precision})
    return made.model_copy(update={"train": train})


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["bf16", "bf16"], "bf16"),
        (["bf16", "fp16", "bf16"], "fp16"),
        (["bf16", "fp32", "fp16"], "fp32"),
    ],
    ids=["all new", "one old", "one CPU"],
)
def test_the_weakest_device_decides_for_all(devices: list, expected: str) -> None:
    assert choose_precision(options("auto"), {}, devices) == expected


def test_a_run_ends_in_the_precision_it_began_with() -> None:
    numbers: dict = {}
    choose_precision(options("auto"), numbers, ["bf16", "fp16"])
    assert choose_precision(options("auto"), numbers, ["bf16"]) == "fp16"


def test_a_stated_precision_holds() -> None:
    assert choose_precision(options("bf16"), {}, ["fp32"]) == "bf16"
    assert fastest_of(torch.device("cpu")) == "fp32"
