"""Checkpoints without pickle: safetensors for tensors, JSON for the rest.

`checkpoint/epoch-00041/` holds `model.safetensors` and, for the newest, `optimizer.safetensors`;
of a method with something to calibrate after the fit the best one also `calibrated.safetensors`.
`checkpoint/state.json` is written last and says which folders count: `last` to resume from, `best`
to detect with. A folder that it does not name was cut short and is removed.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from uadray import files
from uadray.errors import CheckpointError
from uadray.runs.reading import CHECKPOINT, writing
from uadray.runs.state import (
    AGAIN,
    NO_WEIGHTS,
    STATE,
    State,
    calibrated_path,
    folder_name,
    model_path,
    read_state,
    weights_digest,
)

if TYPE_CHECKING:
    from uadray.runs.folder import Run

__all__ = ["NO_WEIGHTS", "CheckpointStore", "State", "weights_digest"]


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_url: The run folder.
        identity: Fingerprints of experiment and cohort; a checkpoint of others is refused.
    """

    def __init__(self, run_url: str, identity: str) -> None:
        self._url, self._identity = files.join(run_url, CHECKPOINT), identity

    @classmethod
    def of(cls, run: "Run") -> Self:
        """The checkpoints of a run."""
        return cls(run.url, run.checkpoint_key)

    def state(self) -> State | None:
        """The current state, or None before the first checkpoint.

        Raises:
            CheckpointError: the checkpoint is of another experiment or cohort, or damaged.
        """
        return read_state(self._url, self._identity)

    @staticmethod
    def remove(run_url: str) -> None:
        """Remove all checkpoints of the run at `run_url`."""
        files.remove(files.join(run_url, CHECKPOINT))

    def copy_to(self, run_url: str, identity: str) -> None:
        """Give the checkpoints that count to another run, as of `identity`; their state last."""
        state, there = self.state(), files.join(run_url, CHECKPOINT)
        assert state is not None
        for path in state.digests:
            files.write_bytes(
                files.join(there, path), files.read_bytes(files.join(self._url, path))
            )
        files.write_json(files.join(there, STATE), vars(replace(state, identity=identity)))

    def save(
        self,
        epoch: int,
        model: nn.Module,
        optimizer: "Optimizers | torch.optim.Optimizer | None",
        value: float | None,
        since: int = 0,
    ) -> State:
        """Write a checkpoint; it becomes the best one if `value` is lower than before.

        Args:
            epoch: Finished epochs.
            model: Its parameters and buffers are kept.
            optimizer: One, several by name, or none.
            value: Smaller is better; None to resume from alone, not to be chosen.
            since: Epochs up to this one have values of another kind, and are no longer the best.
        """
        old = self.state()
        if value is None:
            value = sys.float_info.max
        folder = folder_name(epoch)
        contents = {model_path(epoch): save(_tensors(model.state_dict()))}
        if optimizer is not None:
            contents[f"{folder}/optimizer.safetensors"] = save(
                _optimizer_tensors(_named(optimizer))
            )
        with writing(self._url):
            for path, content in contents.items():
                files.write_bytes(files.join(self._url, path), content)
        digests = {p: hashlib.sha256(c).hexdigest() for p, c in contents.items()}
        # A fit that was cut short after its checkpoint writes the same epoch once more.
        is_best = old is None or value < old.best_value or old.best == epoch or old.best <= since
        if old and not is_best:
            digests[model_path(old.best)] = old.digests[model_path(old.best)]
        state = State(
            last=epoch,
            best=epoch if is_best or old is None else old.best,
            best_value=value if is_best or old is None else old.best_value,
            digests=digests,
            identity=self._identity,
        )
        files.write_json(files.join(self._url, STATE), vars(state))
        counting = {STATE, folder_name(state.last), folder_name(state.best)}
        for name in files.list_names(self._url):
            # Older epochs, and what a killed save has left.
            if name.startswith(("epoch-", f".{STATE}")) and name not in counting:
                files.remove(files.join(self._url, name))
        return state

    def save_calibrated(self, model: nn.Module) -> State:
        """Write the best model once more, with its calibrated buffers.

        A job that is cut short here leaves what was there before, and calibrates again.
        """
        old = self.state()
        assert old is not None
        path, content = calibrated_path(old.best), save(_tensors(model.state_dict()))
        files.write_bytes(files.join(self._url, path), content)
        state = replace(old, digests={**old.digests, path: hashlib.sha256(content).hexdigest()})
        files.write_json(files.join(self._url, STATE), vars(state))
        return state

    def load_model(self, model: nn.Module, epoch: int) -> None:
        """Load the parameters and buffers of one epoch, calibrated where they are.

        Raises:
            CheckpointError: the file is absent, damaged, or of another architecture.
        """
        state, path = self.state(), model_path(epoch)
        if state is not None and epoch == state.best:
            path = state.weights
        tensors = self._read(path)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(f"{self._url}: another architecture: {error}") from None

    def load_optimizer(self, optimizer: "Optimizers | torch.optim.Optimizer", epoch: int) -> None:
        """Load the state of the newest epoch into the optimiser, or into several by name."""
        tensors = self._read(f"{folder_name(epoch)}/optimizer.safetensors")
        states: dict[str, dict[int, dict[str, Tensor]]] = {}
        for path, tensor in tensors.items():
            *player, index, key = path.split(".")
            mine = states.setdefault(".".join(player), {})
            mine.setdefault(int(index), {})[key] = tensor
        for name, each in _named(optimizer).items():
            _load_state(each, states.get(name, {}))

    def _read(self, path: str) -> dict[str, Tensor]:
        url = files.join(self._url, path)
        state = self.state()
        try:
            content = files.read_bytes(url)
        except FileNotFoundError:
            raise CheckpointError(f"{url} is missing: {AGAIN}") from None
        if state is None or hashlib.sha256(content).hexdigest() != state.digests.get(path):
            raise CheckpointError(f"{url} is damaged: {AGAIN}")
        return dict(load(content))


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


Optimizers = Mapping[str, torch.optim.Optimizer]
"""By the player's name, which is empty where there is one."""


def _named(optimizer: Optimizers | torch.optim.Optimizer) -> Optimizers:
    return optimizer if isinstance(optimizer, Mapping) else {"": optimizer}


def _optimizer_tensors(optimizers: Optimizers) -> dict[str, Tensor]:
    return _tensors(
        {
            f"{name}.{index}.{key}".lstrip("."): tensor
            for name, optimizer in optimizers.items()
            for index, entry in optimizer.state_dict()["state"].items()
            for key, tensor in entry.items()
        }
    )


def _load_state(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entry in optimizer.state.items():
        for key, tensor in entry.items():
            if tensor.shape == parameter.shape:
                # Fused Adam pairs elements by their place in memory, and files keep no layout.
                entry[key] = torch.empty_like(parameter).copy_(tensor)
