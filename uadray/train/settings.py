"""How much of a cluster a fit takes, and where its epochs are shown; nothing here computes."""

from dataclasses import dataclass
from typing import Literal

from uadray.device import Device
from uadray.errors import ConfigError
from uadray.methods.settings import check_finite


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How much of a cluster a fit takes.

    A step takes the same number of samples whatever is chosen here, and a checkpoint may be taken
    up with another choice. Erasing and noise are the same for any number of workers; which volumes
    share a step is not, since each worker has a part of its own.
    """

    num_workers: int = 1
    """1 fits in this process; more start a DDP group under Ray Train. Batches need not divide by
    it."""
    min_workers: int = 0
    """Go on with as few as these where nodes are lost, and grow again with new ones; 0 waits for
    all `num_workers`."""
    micro_batch: int = 0
    """Maximum number of samples in a worker's network at a time; the gradients of a step add up, so
    that memory is bounded and the result the same but for rounding. 0 takes a worker's whole share
    of the batch."""
    cuda_graph: bool = False
    """Repeat whole steps as a CUDA graph, by one launch each: for small networks on one GPU, such
    as those on slices, whose steps the launches bound. Methods with several players or phases, and
    compiled ones, take their steps as usual; the checkpoints are the same but for rounding."""
    device: Device = "auto"
    """`cuda` gives each worker a GPU and refuses where there is none, or none that torch can use;
    `cpu` takes none. `auto`: a single worker takes one where there is one, of a cluster that the
    job has joined on whichever node it is; workers of a group as `use_gpu` says."""
    use_gpu: bool = False
    """Whether each worker of a group takes a GPU, as `device` of `cuda`."""
    cpus_per_worker: float = 0.75
    """Logical CPUs of each worker of a group; the rest of a node reads."""
    max_failures: int = 3
    """How often a group is started again from its newest checkpoint after a failure; starting again
    where a node left as announced, such as a spot instance, is not counted."""
    wait_minutes: float = 0.0
    """How long a group waits for nodes that an autoscaler is to start; 0 refuses at once what does
    not fit on the nodes that are there."""
    timeout_minutes: float = 30.0
    """How long the workers of a group wait for one of them in an exchange, such as while it reads
    its part of the cohort or writes a checkpoint, before the group is started again."""

    def __post_init__(self) -> None:
        check_finite(self, "scale.")
        if self.num_workers < 1 or self.cpus_per_worker <= 0:
            raise ConfigError("scale.num_workers must be >= 1 and scale.cpus_per_worker > 0")
        if not 0 <= self.min_workers <= self.num_workers:
            raise ConfigError(
                f"scale.min_workers must be in [0, num_workers], was {self.min_workers}"
            )
        if self.timeout_minutes <= 0:
            raise ConfigError(f"scale.timeout_minutes must be > 0, was {self.timeout_minutes}")
        if self.cuda_graph and (self.num_workers > 1 or self.micro_batch):
            raise ConfigError(
                "scale.cuda_graph is for one worker without micro-batches: drop it, or "
                "scale.num_workers and scale.micro_batch"
            )
        if self.use_gpu and self.device == "cpu":
            raise ConfigError("scale.use_gpu contradicts a scale.device of cpu: drop one of them")
        if min(self.micro_batch, self.max_failures, self.wait_minutes) < 0:
            raise ConfigError(
                "scale.micro_batch, scale.max_failures and scale.wait_minutes must be >= 0"
            )

    @property
    def takes_gpus(self) -> bool:
        """Whether each worker of a group takes a GPU."""
        return self.use_gpu or self.device == "cuda"


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Where else the epochs of a fit are shown."""

    tensorboard: bool = False
    """Write event files to `tensorboard/` in the run folder, which must be local then."""
    mlflow: str = ""
    """Tracking URI of an MLflow to write to, such as `sqlite:///mlflow.db` or `http://HOST:5000`;
    empty for none."""
    mlflow_experiment: str = "uadray"
    """Name of the MLflow experiment that the run belongs to."""
    wandb: str = ""
    """Project of Weights & Biases to write to, `PROJECT` or `ENTITY/PROJECT`; empty for none. The
    key comes from `wandb login` or `WANDB_API_KEY` on the nodes, never from a flag."""
    wandb_mode: Literal["", "online", "offline"] = ""
    """`offline` asks no network for anything and writes to `wandb/` in the run folder, or where
    `WANDB_DIR` says; `wandb sync` sends it later. By default what `WANDB_MODE` says, or else
    `online`."""

    def __post_init__(self) -> None:
        if self.wandb.count("/") > 1 or (self.wandb and not all(self.wandb.split("/"))):
            raise ConfigError(f"track.wandb must be PROJECT or ENTITY/PROJECT, was {self.wandb!r}")
