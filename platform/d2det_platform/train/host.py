"""What the loop needs of the system that runs it, so that the loop itself does not know Ray."""

from __future__ import annotations

import os
import platform
from typing import Any, Protocol

import ray
import ray.train
import torch

from d2det_platform.train.apart import score_apart
from d2det_platform.train.options import TrainOptions

EVALUATION_PATIENCE_S = 600.0
"""How long the end of a run waits for an evaluation elsewhere before it scores by itself."""


class Host(Protocol):
    """The world around one rank."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tells the system how far the run is; all ranks call it equally often."""

    def is_leaving(self) -> bool:
        """Returns whether a machine of the group will be taken away; all ranks ask together."""

    def has_room(self, options: TrainOptions) -> bool:
        """Returns whether an evaluation would find a place beside the training."""

    def score(self, options: TrainOptions, step: int) -> Any:
        """Starts the evaluation of the weights of `step` elsewhere; returns a handle of it."""

    def is_over(self, handle: Any, *, wait: bool) -> bool:
        """Returns whether that evaluation has ended, well or not; waits for it if asked to.

        It waits `EVALUATION_PATIENCE_S`, as the place it needs may be the one that waits here.
        """

    def give_up(self, handle: Any) -> None:
        """Ends that evaluation."""


class RayHost:
    """A worker of Ray Train."""

    def report(self, metrics: dict[str, float]) -> None:
        """See `Host`; waits until the controller has looked, which it does now and then."""
        ray.train.report(metrics)

    def is_leaving(self) -> bool:
        """See `Host`."""
        return ray.train.get_preemption_info() is not None

    def has_room(self, options: TrainOptions) -> bool:
        """See `Host`."""
        free = ray.available_resources()
        cpus = free.get("CPU", 0) >= options.cluster.cpus_per_worker
        return bool(cpus and (not options.cluster.gpu or free.get("GPU", 0) >= 1))

    def score(self, options: TrainOptions, step: int) -> Any:
        """See `Host`."""
        cluster = options.cluster
        task = ray.remote(score_apart).options(
            name="evaluate",
            num_cpus=cluster.cpus_per_worker,
            num_gpus=1 if cluster.gpu else 0,
            max_retries=3,
        )
        return task.remote(options.model_dump(mode="json"), step)

    def is_over(self, handle: Any, *, wait: bool) -> bool:
        """See `Host`."""
        over, _ = ray.wait([handle], timeout=EVALUATION_PATIENCE_S if wait else 0)
        return bool(over)

    def give_up(self, handle: Any) -> None:
        """See `Host`."""
        ray.cancel(handle, force=True)


class PlainHost:
    """A process of its own, or one of a torch process group without Ray."""

    def report(self, metrics: dict[str, float]) -> None:
        """Nobody wants to know."""

    def is_leaving(self) -> bool:
        """Nobody would say."""
        return False

    def has_room(self, options: TrainOptions) -> bool:
        """No other resources are known."""
        return False

    def score(self, options: TrainOptions, step: int) -> Any:
        """Scores at once."""
        score_apart(options.model_dump(mode="json"), step)

    def is_over(self, handle: Any, *, wait: bool) -> bool:
        """It was over when it began."""
        return True

    def give_up(self, handle: Any) -> None:
        """There is nothing to end."""


def describe_device(device: torch.device) -> dict[str, Any]:
    """Returns this rank's row of the device table."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name = f"CPU x {torch.get_num_threads()}"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "device": name,
        "memory_bytes": memory,
        "torch": str(torch.__version__),
    }
