"""What a training job can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from d2det.config import Config, InputConfig, ModelConfig, Preset, TrainConfig
from d2det.presets import get_preset
from d2det_platform.places import Place


class DataOptions(Config):
    """Where the pictures and their annotations are."""

    train_images: Place
    """Folder of the training pictures."""
    train_annotations: Place
    """COCO-format JSON of the training pictures."""
    val_images: Place | None = None
    """Folder of the validation pictures; None: that of the training pictures."""
    val_annotations: Place | None = None
    """COCO-format JSON of the validation pictures; None: no evaluation."""
    loader_threads: int = Field(default=2, ge=1)
    """Threads per worker that read and decode pictures ahead."""


class ClusterOptions(Config):
    """What the job asks of the cluster."""

    workers: int = Field(default=1, ge=1)
    """Training processes."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few as this many, and with up to `workers` as machines come; None: always
    `workers`."""
    resize_check_s: float = Field(default=60.0, gt=0)
    """How often to look whether more workers than now would find a place."""
    shares: Literal["measured", "equal"] = "measured"
    """Pictures per worker: by measured speed, or the same for all."""
    images_per_pass: int | None = Field(default=None, ge=1)
    """Most pictures a worker computes at once; larger shares are computed in several passes with
    the same gradient, at a third more time. None: as its memory is measured to hold."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs reserved for, and compute threads used by, each worker."""
    gpu: bool = False
    """Give every worker a GPU."""
    accelerators: dict[str, int] = Field(default_factory=dict)
    """Workers per accelerator type (A100 2 T4 4 ...), summing to `workers`; empty: any."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Node labels that every worker's machine must have (`ray start --labels`)."""
    max_failures: int = Field(default=20, ge=0)
    """Worker or node deaths the run survives before it gives up."""
    collective_timeout_s: int = Field(default=600, ge=10)
    """A worker that hangs is noticed after this."""


class TrainOptions(Config):
    """Options of a training; `--preset` supplies the defaults of model, input and train."""

    preset: str = "d2det_r50"
    """Row of the paper (`d2det presets` lists them)."""
    data: DataOptions
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; the same name and storage continue it."""
    storage: Place = Field(default="runs", validate_default=True)
    """Folder or fsspec URL that all workers reach; the run folder is STORAGE/NAME."""
    trunk: Place | None = None
    """Pretrained trunk weights (a torchvision state dict)."""
    init: Place | None = None
    """Weights of ours to fine-tune from; what is bound to classes is drawn anew for other ones."""
    cluster: ClusterOptions = ClusterOptions()
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Checkpoint after this many steps, besides `checkpoint_every_s`."""
    checkpoint_every_s: float = Field(default=300.0, gt=0)
    """Checkpoint after this many seconds: at most so much work is lost."""
    checkpoints_kept: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; two, so that a damaged one has a predecessor."""
    evaluate_every_epochs: int = Field(default=1, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    best_metric: Literal["bbox/AP", "segm/AP", "bbox/AP50", "bbox/AP75"] = "bbox/AP"
    """Metric that names the best weights."""
    evaluate_on: Literal["auto", "workers", "apart"] = "auto"
    """Where validation runs while training goes on: "apart" on a CPU or GPU of its own, "workers"
    on the training processes, which wait; "auto" apart where the cluster has room."""
    early_stop: int | None = Field(default=None, ge=1)
    """End after this many evaluations in a row without a better `best_metric`; None: never."""
    max_skipped_steps: int = Field(default=10, ge=0)
    """Consecutive steps with a loss or gradient that is not finite before the run stops."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder, tb/."""
    mlflow: str | None = None
    """MLflow tracking URI that losses and metrics are sent to as well (needs mlflow)."""
    model: ModelConfig = ModelConfig()
    input: InputConfig = InputConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainOptions:
        cluster = self.cluster
        if self.train.precision == "fp16" and not cluster.gpu:
            raise ValueError("--train.precision fp16 needs --cluster.gpu; CPUs do fp32 and bf16")
        if cluster.min_workers is not None and cluster.min_workers > cluster.workers:
            raise ValueError(
                f"--cluster.min-workers {cluster.min_workers} is more than --cluster.workers "
                f"{cluster.workers}"
            )
        if cluster.accelerators:
            if cluster.min_workers is not None:
                raise ValueError(
                    "--cluster.accelerators fixes the workers: leave out --cluster.min-workers"
                )
            if sum(cluster.accelerators.values()) != cluster.workers:
                raise ValueError(
                    f"--cluster.accelerators names {sum(cluster.accelerators.values())} workers, "
                    f"--cluster.workers {cluster.workers}"
                )
        return self

    @property
    def run_url(self) -> str:
        """The run folder."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    def as_preset(self) -> Preset:
        """Returns the preset this run trains: the named one with the overrides applied."""
        return get_preset(self.preset).model_copy(
            update={"model": self.model, "input": self.input, "train": self.train}
        )
