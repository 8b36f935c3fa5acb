"""The last layer, as far as it can be tried without a cluster: what calls and errors become."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from d2det_platform.serve import deployments
from d2det_platform.serve.auth import new_key
from d2det_platform.serve.courier import Courier, ReplicaLost
from d2det_platform.serve.deployments import Detector, Ingress, build
from d2det_platform.serve.messages import Answer, Job, Reply
from d2det_platform.serve.metrics import MemoryRecorder
from d2det_platform.serve.options import ServeOptions
from tests.platform.serve.endpoint import jpeg, options


class Handle:
    """A detector's handle whose calls do as told."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.calls = 0
        self.run = self.is_ready = self

    def remote(self, *_: Any) -> Any:
        async def answer() -> Any:
            self.calls += 1
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        return answer()


def ingress(outcome: Any, **changes: Any) -> Ingress:
    made = object.__new__(Ingress)
    made._engine, made._detector = None, Handle(outcome)
    made._options = options(**changes)
    made._courier = Courier(made._call)
    made._is_ready, made._asked_at = False, 0.0
    return made


@pytest.mark.parametrize(
    "error",
    [ActorDiedError(), ActorUnavailableError("gone", b"x" * 16), grpc.RpcError()],
    ids=lambda error: type(error).__name__,
)
def test_what_is_lost_may_be_sent_again(error: Exception) -> None:
    with pytest.raises(ReplicaLost):
        asyncio.run(ingress(error)._call([Job(b"", (1, 1))]))


@pytest.mark.parametrize(
    "error",
    [BackPressureError(3, 2), DeploymentUnavailableError(DeploymentID("detector"))],
    ids=lambda error: type(error).__name__,
)
def test_a_full_or_failed_deployment_is_unavailable(error: Exception) -> None:
    reply = asyncio.run(ingress(error)._call([Job(b"", (1, 1))] * 2))
    assert [answer.reason for answer in reply.answers] == ["unavailable"] * 2


def test_an_error_of_ours_is_neither() -> None:
    with pytest.raises(KeyError):
        asyncio.run(ingress(KeyError("bug"))._call([Job(b"", (1, 1))]))


def test_readiness_is_asked_for_now_and_then_and_not_of_a_busy_detector() -> None:
    async def check() -> None:
        made = ingress(True)
        assert await made._ready()
        assert await made._ready()
        assert made._detector.calls == 1  # type: ignore[union-attr]
        dead = ingress(ActorDiedError())
        assert not await dead._ready()
        busy = ingress(ActorDiedError())
        busy._detector = Handle(Reply((Answer(row={}),), "a"))  # type: ignore[assignment]
        await busy._courier.predict(Job(b"", (1, 1)), deadline=1e12)
        busy._detector = Handle(ActorDiedError())  # type: ignore[assignment]
        assert await busy._ready()
        assert await ingress(ActorDiedError(), scaling={"min_replicas": 0})._ready()

    asyncio.run(check())


def test_the_application_has_an_ingress_and_a_detector_or_both_in_one() -> None:
    split = build(ServeOptions(model="m:f", scaling={"max_replicas": 3, "gpus": 1, "cpus": 2}))
    assert split._bound_deployment.name == "ingress"
    values, detector = split._bound_deployment.init_args
    assert ServeOptions.model_validate(values).model == "m:f"
    assert detector._bound_deployment.name == "detector"
    assert detector._bound_deployment.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 1.0}
    scaling = detector._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    together = build({"model": "m:f", "scaling": {"together": True}})
    assert together._bound_deployment.init_args[1] is None


def test_detectors_can_scale_to_zero() -> None:
    app = build({"model": "m:f", "scaling": {"min_replicas": 0}})
    detector = app._bound_deployment.init_args[1]._bound_deployment
    scaling = detector._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.initial_replicas) == (0, 1)


@pytest.mark.parametrize("together", [True, False], ids=["together", "split"])
def test_the_replicas_serve_pictures_whether_together_or_apart(
    together: bool, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that replicas do, but for Ray between them."""
    monkeypatch.setattr(deployments, "RayRecorder", MemoryRecorder)
    monkeypatch.setattr(deployments, "_log_like_serve", lambda: None)
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(deployments.serve, "get_replica_context", lambda: context)
    keys = tmp_path / "keys"
    key, line = new_key("tests")
    keys.write_text(line)
    options = ServeOptions(weights=small_weights, keys=keys, warm_up_s=0)
    values = options.model_dump(mode="json")

    class Direct:
        """A handle to a detector in this process."""

        def __init__(self, detector: Detector) -> None:
            self.run = SimpleNamespace(remote=detector.run)
            self.is_ready = SimpleNamespace(remote=detector.is_ready)

    async def check() -> None:
        detector = None if together else Detector(values)
        made = Ingress(values, None if detector is None else Direct(detector))  # type: ignore[arg-type]
        transport = httpx.ASGITransport(made.__serve_build_asgi_app__())
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://anywhere", headers=headers
        ) as http:
            answer = await http.post("/v1/detect", content=jpeg(50, 70))
            assert answer.status_code == 200, answer.text
            assert answer.json()["images"][0]["detections"]
            assert "x-request-id" not in answer.headers  # Serve adds it
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.get("/v1/model")).json()["preset"] == "small"
        await made.check_health()
        if detector is not None:
            await detector.check_health()

    asyncio.run(check())
