"""Options of the endpoint: the same model feeds the command line, the Serve file and RayService."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from d2det.config import Config
from d2det.inference.options import PredictOptions
from d2det_platform.places import LocalPath
from d2det_platform.serve.limits import Limits


class Batching(Config):
    """How pictures wait for each other; with nobody else there, they never wait."""

    max_pictures: int = Field(default=16, ge=1)
    """Pictures that travel to a detector in one call."""
    calls_per_replica: int = Field(default=2, ge=1)
    """Calls a detector replica is given at once: one is predicted, the next is decoded."""
    queued_calls: int = Field(default=2, ge=1)
    """Full calls that may wait for each detector replica; who comes on top is told to come back."""
    batches_in_flight: int | None = Field(default=None, ge=1)
    """Batches in the network at once; None: two on a GPU, one on a CPU."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads of a detector replica that decode ahead of the network."""
    max_decoded_pixels: int = Field(default=200_000_000, ge=1)
    """Pixels a detector replica decodes ahead, at three bytes each."""


class Scaling(Config):
    """How many replicas there are, and what each takes."""

    together: bool = False
    """Detect in the processes that talk HTTP, instead of in replicas of their own: no hop between
    them, but no scaling to zero, and a detector that dies takes its connections along."""
    min_replicas: int = Field(default=1, ge=0)
    """Detector replicas when nobody asks; 0 gives the accelerator back and costs a cold start."""
    max_replicas: int = Field(default=1, ge=1)
    """Detector replicas under load."""
    cpus: float = Field(default=1.0, ge=0)
    """CPUs Ray reserves for a detector replica."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs Ray reserves for a detector replica."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the network; None: as many as `cpus`."""
    ingress_replicas: int = Field(default=1, ge=1)
    """Processes that talk HTTP."""
    ingress_cpus: float = Field(default=0.1, ge=0)
    """CPUs Ray reserves for each of them."""
    target_calls: float = Field(default=1.0, gt=0)
    """Calls in flight per detector replica that autoscaling aims at."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """Load must last this long before replicas are added."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """Load must be gone this long before replicas are removed."""
    drain_s: float = Field(default=60.0, ge=0)
    """A replica that is replaced may finish what it has for this long."""
    health_period_s: float = Field(default=10.0, gt=0)
    """How often the model itself is tried."""
    health_timeout_s: float = Field(default=60.0, gt=0)
    """A trial or a batch longer than this means that the replica hangs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} must not pass max_replicas {self.max_replicas}"
            )
        return self


class Outside(Config):
    """Pictures that the endpoint fetches itself: nothing, unless named here."""

    allow_hosts: tuple[str, ...] = ()
    """Hosts that pictures may be fetched from over https: "img.example.org", "*.example.org"."""
    private_hosts: tuple[str, ...] = ()
    """Hosts, by exact name, that may have a private address and plain http: a Label Studio next
    door."""
    allow_prefixes: tuple[str, ...] = ()
    """Beginnings of object store addresses that scenes may be read from: "s3://lake/flights/"."""
    label_studio_url: str | None = None
    """Where Label Studio is, for pictures that its tasks name by path."""

    def allows_anything(self) -> bool:
        """Returns whether any address may be fetched."""
        return bool(self.allow_hosts or self.private_hosts or self.allow_prefixes)


class ServeOptions(Config):
    """What the endpoint is made of; the arguments of the application in a Serve config file."""

    weights: LocalPath | None = None
    """Weights file (.safetensors) from training or from `d2det convert`."""
    model: str | None = None
    """Another detector instead, "module:callable": list of (H, W, 3) uint8 RGB to Detections."""
    name: str = Field(default="d2det", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the model in answers and under /v2/models."""
    keys: LocalPath | None = None
    """File of API keys that `d2det serve-key` writes; it is read again when it changes."""
    predict: PredictOptions = PredictOptions()
    """How pictures are predicted."""
    limits: Limits = Limits()
    """What a request may ask for."""
    batching: Batching = Batching()
    """How pictures are put together."""
    scaling: Scaling = Scaling()
    """Replicas and their resources."""
    outside: Outside = Outside()
    """Pictures by address."""
    warm_up_s: float = Field(default=30.0, ge=0)
    """Before it is ready a detector tries the usual sizes, then others for this long at most."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.weights is None) == (self.model is None):
            raise ValueError("give either --weights or --model")
        return self


class ServeCommand(ServeOptions):
    """Runs the endpoint on this machine until Ctrl-C.

    Example: d2det serve --weights w.safetensors --port 8000
    """

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs --keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
