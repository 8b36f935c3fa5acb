"""The endpoint as a Ray Serve application: a deployment that talks HTTP, and one that detects."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
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
from d2det_platform.serve.metrics import RayRecorder, Recorder
from d2det_platform.serve.model import describe
from d2det_platform.serve.options import Batching, Scaling, ServeOptions

if TYPE_CHECKING:
    from d2det_platform.serve.engine import Engine

logger = logging.getLogger(__name__)

LABEL_STUDIO_TOKEN = "D2DET_LABEL_STUDIO_TOKEN"
"""Environment variable with the token for pictures that Label Studio keeps; it is no option, since
options appear in Serve's status."""
_LOST = (
    RayActorError,
    ActorUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
    grpc.RpcError,
)
_READY_FOR_S = 1.0
"""A found readiness holds for this long."""
_READY_TIMEOUT_S = 3.0
_LOOK_BACK_S = 12.0
"""Load is averaged over this; Serve wants it longer than the ten seconds between its reports."""
_INGRESS_ONGOING = 4096
"""HTTP requests of one process: nearly all of them wait for their body, which costs nothing; how
many pictures wait for a detector is counted by the courier."""


def warm_engine(options: ServeOptions, recorder: Recorder) -> Engine:
    """Returns an engine with the detector loaded and every usual shape tried."""
    import torch

    from d2det_platform.serve.engine import Engine
    from d2det_platform.serve.model import load_model

    started = time.monotonic()
    scaling = options.scaling
    torch.set_num_threads(scaling.threads or max(1, int(scaling.cpus)))
    info = describe(options.weights, options.model, options.name)
    engine = Engine(
        load_model(options.weights, options.model, options.predict),
        info.categories,
        batching=options.batching,
        decoding=options.limits.scene(),
        max_pixels=options.predict.batch_pixels,
        recorder=recorder,
    )
    shapes = engine.warm_up(options.warm_up_s)
    seconds = time.monotonic() - started
    recorder.add("d2det_cold_start_s", seconds)
    logger.info("ready after %.1f s, %d shapes warmed up", seconds, shapes)
    return engine


class Detector:
    """A detector replica: one engine."""

    def __init__(self, options: dict[str, Any]) -> None:
        _log_like_serve()
        self._options = ServeOptions.model_validate(options)
        self._engine = warm_engine(self._options, RayRecorder())
        self._replica = serve.get_replica_context().replica_id.unique_id

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

    def __init__(self, options: dict[str, Any], detector: DeploymentHandle | None) -> None:
        self._options = ServeOptions.model_validate(options)
        self._detector = detector
        self._is_ready, self._asked_at = False, 0.0
        _log_like_serve()
        self._recorder = RayRecorder()
        self._engine = None if detector else warm_engine(self._options, self._recorder)

    def __serve_build_asgi_app__(self) -> Any:
        """Returns the application; Ray Serve calls this after the constructor."""
        from d2det_platform.serve.app import create_app
        from d2det_platform.serve.auth import Keys
        from d2det_platform.serve.fetch import Fetcher
        from d2det_platform.serve.service import Service

        options, recorder = self._options, self._recorder
        self._courier = Courier(self._call, options.batching, recorder)
        service = Service(
            options=options,
            info=describe(options.weights, options.model, options.name, options.predict),
            courier=self._courier,
            keys=None if options.keys is None else Keys(options.keys),
            recorder=recorder,
            ready=self._ready,
        )
        if options.outside.allows_anything():
            service.fetch = Fetcher(options.outside, token=os.environ.get(LABEL_STUDIO_TOKEN))
        return create_app(service, sends_request_id=False)  # Serve does

    async def _call(self, jobs: list[Job]) -> Reply:
        if self._engine is not None:
            return Reply(tuple(await self._engine.run(jobs)))
        assert self._detector is not None
        try:
            reply: Reply = await self._detector.run.remote(jobs)
            return reply
        except (BackPressureError, DeploymentUnavailableError) as error:
            gone = Answer(reason="unavailable", detail=error.message)
            return Reply((gone,) * len(jobs))
        except _LOST as error:
            raise ReplicaLost(str(error)) from error

    async def check_health(self) -> None:
        """Tries the model where it is in this process."""
        if self._engine is not None:
            scaling = self._options.scaling
            await self._engine.check(
                idle_s=scaling.health_period_s, hang_s=scaling.health_timeout_s
            )

    async def _ready(self) -> bool:
        if self._engine is not None:
            return True
        assert self._detector is not None
        if self._options.scaling.min_replicas == 0 or self._courier.has_heard:
            return True  # asking would start one, or stand in a queue with everybody
        now = time.monotonic()
        if now - self._asked_at > _READY_FOR_S:
            self._asked_at = now
            try:
                async with asyncio.timeout(_READY_TIMEOUT_S):
                    self._is_ready = bool(await self._detector.is_ready.remote())
            except (TimeoutError, *_LOST, BackPressureError, DeploymentUnavailableError):
                self._is_ready = False
        return self._is_ready


def build(options: ServeOptions | Mapping[str, Any]) -> serve.Application:
    """Returns the application; the entry point of Serve config files, with `args` as options.

    Raises:
        ValueError: An option does not exist, with the nearest that does, or makes no sense.
    """
    options = ServeOptions.model_validate(options)
    values = options.model_dump(mode="json")
    scaling, batching = options.scaling, options.batching
    detector = serve.deployment(
        Detector,
        name="detector",
        max_ongoing_requests=batching.calls_per_replica * max(2, scaling.ingress_replicas),
        max_queued_requests=256,
        autoscaling_config={
            **_autoscaling(scaling),
            "min_replicas": scaling.min_replicas,
            "initial_replicas": max(1, scaling.min_replicas),
            "target_ongoing_requests": scaling.target_calls,
        },
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        health_check_timeout_s=scaling.health_timeout_s,
        **_life(scaling),
    )
    if scaling.together:
        return _together(values, scaling, batching)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        num_replicas=scaling.ingress_replicas,
        max_ongoing_requests=_INGRESS_ONGOING,
        ray_actor_options={"num_cpus": scaling.ingress_cpus},
        **_life(scaling),
    )
    return ingress.bind(values, detector.bind(values))


def _together(values: dict[str, Any], scaling: Scaling, batching: Batching) -> serve.Application:
    """The application of one deployment, whose replicas talk HTTP and detect."""
    return serve.deployment(
        serve.ingress()(Ingress),
        name="ingress",
        max_ongoing_requests=_INGRESS_ONGOING,
        autoscaling_config={
            **_autoscaling(scaling),
            "min_replicas": max(1, scaling.min_replicas),
            "target_ongoing_requests": scaling.target_calls * batching.max_pictures,
        },
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        health_check_timeout_s=scaling.health_timeout_s,
        **_life(scaling),
    ).bind(values, None)


def _autoscaling(scaling: Scaling) -> dict[str, Any]:
    """When replicas come and go, whatever they do."""
    return {
        "max_replicas": scaling.max_replicas,
        "upscale_delay_s": scaling.upscale_delay_s,
        "downscale_delay_s": scaling.downscale_delay_s,
        "look_back_period_s": _LOOK_BACK_S,
    }


def _life(scaling: Scaling) -> dict[str, Any]:
    """How every replica is watched, replaced and ended."""
    return {
        "graceful_shutdown_timeout_s": scaling.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": scaling.health_period_s,
        "max_surge_percent": 100,
        "logging_config": {"enable_access_log": False},  # the app has one of its own
    }


def _log_like_serve() -> None:
    """Sends our log lines where Ray Serve writes its own of this replica."""
    ours = logging.getLogger("d2det_platform")
    ours.handlers = logging.getLogger("ray.serve").handlers
    ours.setLevel(os.environ.get("D2DET_LOG_LEVEL", "INFO"))
    ours.propagate = False
