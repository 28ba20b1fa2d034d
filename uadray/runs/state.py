"""Which checkpoints of a run count: `checkpoint/state.json`, read without a tensor library."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uadray import files
from uadray.errors import CheckpointError
from uadray.runs.reading import CHECKPOINT

if TYPE_CHECKING:
    from uadray.runs.folder import Run

STATE = "state.json"
"""In the folder of the checkpoints: which of them count."""

NO_WEIGHTS = "none"
"""Digest of the weights of a method that has none, or of a fit without a checkpoint."""

AGAIN = "restore it from a copy, or fit again into another folder (--out)"
"""What helps where a checkpoint cannot be read; the rest of its run may be whole."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What counts in a checkpoint folder."""

    last: int
    """Finished epochs of the newest checkpoint."""
    best: int
    """The same of the one with the best validation reconstruction."""
    best_value: float
    """Its validation reconstruction."""
    digests: dict[str, str]
    """SHA-256 of each file, by its path in the folder."""
    identity: str
    """Fingerprints of experiment and cohort."""

    def __post_init__(self) -> None:
        """Check what was read.

        Raises:
            ValueError: a field is of another kind, or a file that counts has no digest.
        """
        for name, kind in (("last", int), ("best", int), ("best_value", (int, float))):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not isinstance(self.digests, dict):
            raise ValueError("digests is no object")
        if lacking := sorted({model_path(self.last), model_path(self.best)} - set(self.digests)):
            raise ValueError(f"no digest of {lacking[0]}")

    @property
    def calibrated(self) -> bool:
        """Whether the best one has been calibrated, which ends a fit."""
        return calibrated_path(self.best) in self.digests

    @property
    def weights(self) -> str:
        """Path in the folder of the tensors to detect with."""
        return calibrated_path(self.best) if self.calibrated else model_path(self.best)


def read_state(url: str, identity: str) -> State | None:
    """The state of the checkpoint folder at `url`, or None before the first checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another experiment or cohort, or damaged.
    """
    place = files.join(url, STATE)
    if not files.exists(place):
        return None
    try:
        state = State(**files.read_json(place))
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{place} is damaged ({error}): {AGAIN}") from None
    if state.identity != identity:
        raise CheckpointError(
            f"{url} is of experiment and cohort {state.identity}, expected {identity}: it belongs "
            "to another run; choose another --out"
        )
    return state


def weights_digest(run: "Run") -> str:
    """Digest of the weights that a run detects with now: 64 hexadecimal digits, or `NO_WEIGHTS`.

    It is the SHA-256 of the best epoch's tensors as a file, calibrated where they are, which
    `state.json` holds: no weight is read. A fit that goes on and keeps another epoch has another
    one, so that what was computed from the weights before is known by it.

    Raises:
        CheckpointError: the checkpoint is of another run, or damaged.
    """
    return checkpoint_weights(run.url, run.checkpoint_key)


def checkpoint_weights(url: str, identity: str) -> str:
    """`weights_digest` of the run folder at `url`, whose checkpoints are of `identity`."""
    state = read_state(files.join(url, CHECKPOINT), identity)
    return NO_WEIGHTS if state is None else state.digests[state.weights]


def model_path(epoch: int) -> str:
    """Path of an epoch's tensors in the checkpoint folder."""
    return f"{folder_name(epoch)}/model.safetensors"


def calibrated_path(epoch: int) -> str:
    """Path of the same tensors with calibrated buffers."""
    return f"{folder_name(epoch)}/calibrated.safetensors"


def folder_name(epoch: int) -> str:
    """Folder of an epoch in the checkpoint folder."""
    return f"epoch-{epoch:05d}"
