"""The endpoint as a Ray Serve application: a deployment that talks HTTP, and one that detects."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from d2det_platform.serve.courier import Courier, ReplicaLost
from d2det_platform.serve.messages import Answer, Job, Reply
from d2det_platform.serve.metrics import RayRecorder
from d2det_platform.serve.model import describe
from d2det_platform.serve.options import ServeOptions

logger = logging.getLogger(__name__)

APPLICATION = "d2det"
_LOST = (RayActorError, ActorUnavailableError, ReplicaUnavailableError, RequestCancelledError)
_READY_FOR_S = 1.0
"""A found readiness holds for this long."""
_READY_TIMEOUT_S = 3.0
_LOOK_BACK_S = 12.0
"""Load is averaged over this; Serve wants it longer than the ten seconds between its reports."""
_INGRESS_ONGOING = 4096
"""HTTP requests of one process: nearly all of them wait for their body, which costs nothing; how
many pictures wait for a detector is counted by the courier."""


class Detector:
    """A detector replica: one engine."""

    def __init__(self, options: dict[str, Any]) -> None:
        import torch

        from d2det_platform.serve.engine import Engine
        from d2det_platform.serve.model import load_model

        started = time.monotonic()
        self._options = ServeOptions.model_validate(options)
        scaling = self._options.scaling
        torch.set_num_threads(scaling.threads or max(1, int(scaling.cpus)))
        _log_like_serve()
        recorder = RayRecorder()
        info = describe(self._options.weights, self._options.model, self._options.name)
        model = load_model(self._options.weights, self._options.model, self._options.predict)
        self._engine = Engine(
            model,
            info.categories,
            batching=self._options.batching,
            decoding=self._options.limits.scene(),
            max_pixels=self._options.predict.batch_pixels,
            recorder=recorder,
        )
        shapes = self._engine.warm_up(self._options.warm_up_s)
        seconds = time.monotonic() - started
        recorder.add("d2det_cold_start_s", seconds)
        self._replica = serve.get_replica_context().replica_id.unique_id
        logger.info("ready after %.1f s, %d shapes warmed up", seconds, shapes)

    async def run(self, jobs: list[Job]) -> Reply:
        """Returns the answers to the jobs of a call."""
        return Reply(tuple(await self._engine.run(jobs)), self._replica)

    async def is_ready(self) -> bool:
        """Answers once the constructor, which warms up, is through."""
        return True

    async def check_health(self) -> None:
        """Ray Serve asks this; what it raises makes the replica be replaced."""
        scaling = self._options.scaling
        await self._engine.check(idle_s=scaling.health_period_s, hang_s=scaling.health_timeout_s)


class Ingress:
    """A process that talks HTTP; the app is made in it, not sent to it."""

    def __init__(self, options: dict[str, Any], detector: DeploymentHandle) -> None:
        self._options = ServeOptions.model_validate(options)
        self._detector = detector
        self._is_ready, self._asked_at = False, 0.0
        _log_like_serve()

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the application; Ray Serve calls this after the constructor."""
        from d2det_platform.serve.app import create_app
        from d2det_platform.serve.auth import Keys
        from d2det_platform.serve.service import Service

        options, recorder = self._options, RayRecorder()
        service = Service(
            options=options,
            info=describe(options.weights, options.model, options.name),
            courier=Courier(self._call, options.batching, recorder),
            keys=None if options.keys is None else Keys(options.keys),
            recorder=recorder,
            ready=self._ready,
        )
        return create_app(service, sends_request_id=False)  # Serve does

    async def _call(self, jobs: list[Job]) -> Reply:
        try:
            reply: Reply = await self._detector.run.remote(jobs)
            return reply
        except (BackPressureError, DeploymentUnavailableError) as error:
            gone = Answer(reason="unavailable", detail=error.message)
            return Reply((gone,) * len(jobs))
        except _LOST as error:
            raise ReplicaLost(str(error)) from error

    async def _ready(self) -> bool:
        if self._options.scaling.min_replicas == 0:
            return True  # asking would start one
        now = time.monotonic()
        if now - self._asked_at > _READY_FOR_S:
            self._asked_at = now
            try:
                async with asyncio.timeout(_READY_TIMEOUT_S):
                    self._is_ready = bool(await self._detector.is_ready.remote())
            except (TimeoutError, *_LOST, BackPressureError, DeploymentUnavailableError):
                self._is_ready = False
        return self._is_ready


def build(options: ServeOptions) -> serve.Application:
    """Returns the application; the entry point of Serve config files, with `args` as options."""
    values = options.model_dump(mode="json")
    scaling, batching = options.scaling, options.batching
    quiet = {"enable_access_log": False}  # the app has one of its own
    detector = serve.deployment(
        Detector,
        name="detector",
        max_ongoing_requests=batching.calls_per_replica * max(2, scaling.ingress_replicas),
        max_queued_requests=256,
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "initial_replicas": max(1, scaling.min_replicas),
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_calls,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "look_back_period_s": _LOOK_BACK_S,
        },
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        graceful_shutdown_timeout_s=scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=scaling.health_period_s,
        health_check_timeout_s=scaling.health_timeout_s,
        max_surge_percent=100,
        logging_config=quiet,
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=scaling.ingress_replicas,
        max_ongoing_requests=_INGRESS_ONGOING,
        ray_actor_options={"num_cpus": scaling.ingress_cpus},
        graceful_shutdown_timeout_s=scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=scaling.health_period_s,
        max_surge_percent=100,
        logging_config=quiet,
    )
    return ingress.bind(values, detector.bind(values))


def _log_like_serve() -> None:
    """Sends our log lines where Ray Serve writes its own of this replica."""
    ours = logging.getLogger("d2det_platform")
    ours.handlers = logging.getLogger("ray.serve").handlers
    ours.setLevel(os.environ.get("D2DET_LOG_LEVEL", "INFO"))
    ours.propagate = False
