"""Checkpoints without pickle: safetensors for tensors, JSON for the rest.

`checkpoint/epoch-00041/` holds `model.safetensors` and, for the newest, `optimizer.safetensors`;
of a method with something to calibrate after the fit the best one also `calibrated.safetensors`.
`checkpoint/state.json` is written last and says which folders count: `last` to resume from, `best`
to detect with. A folder that it does not name was cut short and is removed.
"""

import hashlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
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

        What this process still writes there (`BackgroundSaves`) is waited for.

        Raises:
            CheckpointError: the checkpoint is of another experiment or cohort, or damaged.
        """
        if (saves := _saving.get(self._url)) is not None:
            saves.settle()
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
        return self._write(epoch, _Snapshot.of(model, optimizer), _measured(value), since)

    def _write(self, epoch: int, snapshot: "_Snapshot", value: float, since: int) -> State:
        old = read_state(self._url, self._identity)
        contents = {model_path(epoch): save(_tensors(snapshot.model))}
        if snapshot.optimizer is not None:
            path = f"{folder_name(epoch)}/optimizer.safetensors"
            contents[path] = save(_tensors(snapshot.optimizer))
        with writing(self._url):
            for path, content in contents.items():
                files.write_bytes(files.join(self._url, path), content)
        digests = {p: hashlib.sha256(c).hexdigest() for p, c in contents.items()}
        is_best = old is None or _is_best((old.best, old.best_value), epoch, value, since)
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


def _measured(value: float | None) -> float:
    return sys.float_info.max if value is None else value


def _is_best(best: tuple[int, float], epoch: int, value: float, since: int) -> bool:
    """Whether an epoch takes the place of the best one, given as its number and value."""
    # A fit that was cut short after its checkpoint writes the same epoch once more.
    return value < best[1] or best[0] == epoch or best[0] <= since


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """Tensors to write, by their names in the files."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None
    ready: "torch.cuda.Event | None" = None
    """When copies on a GPU hold what they are copies of; None where that is at once."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        optimizer: "Optimizers | torch.optim.Optimizer | None",
        *,
        copied: bool = False,
    ) -> "_Snapshot":
        """Those of a model and its optimisers; `copied`, they outlive the next step."""
        tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        states = None if optimizer is None else _optimizer_tensors(_named(optimizer))
        if not copied:
            return cls(model=tensors, optimizer=states)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if states is not None:
            states = {name: tensor.clone() for name, tensor in states.items()}
        ready = None
        if any(tensor.is_cuda for tensor in tensors.values()):
            ready = torch.cuda.Event()
            ready.record()
        return cls(model=tensors, optimizer=states, ready=ready)

    def on_host(self) -> "_Snapshot":
        """The same in this machine's memory, without waiting for what a GPU is given meanwhile."""
        if self.ready is None:
            return self
        device = next(tensor.device for tensor in self.model.values() if tensor.is_cuda)
        stream = torch.cuda.Stream(device)
        stream.wait_event(self.ready)
        with torch.cuda.stream(stream):
            model = _to_pinned(self.model)
            optimizer = None if self.optimizer is None else _to_pinned(self.optimizer)
        stream.synchronize()
        return _Snapshot(model=model, optimizer=optimizer)


def _to_pinned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
            tensor, non_blocking=True
        )
        for name, tensor in tensors.items()
    }


Optimizers = Mapping[str, torch.optim.Optimizer]
"""By the player's name, which is empty where there is one."""


def _named(optimizer: Optimizers | torch.optim.Optimizer) -> Optimizers:
    return optimizer if isinstance(optimizer, Mapping) else {"": optimizer}


def _optimizer_tensors(optimizers: Optimizers) -> dict[str, Tensor]:
    return {
        f"{name}.{index}.{key}".lstrip("."): tensor.detach()
        for name, optimizer in optimizers.items()
        for index, entry in optimizer.state_dict()["state"].items()
        for key, tensor in entry.items()
    }


def _load_state(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entry in optimizer.state.items():
        for key, tensor in entry.items():
            if tensor.shape == parameter.shape:
                # Fused Adam pairs elements by their place in memory, and files keep no layout.
                entry[key] = torch.empty_like(parameter).copy_(tensor)


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """A checkpoint that is still to be written."""

    epoch: int
    snapshot: _Snapshot
    value: float
    since: int
    is_best: bool


class BackgroundSaves:
    """Checkpoints of a fit, written by a thread while it goes on: a context.

    `save` copies the tensors where they are and returns. One checkpoint is written at a time. Of
    those that wait the newest alone is written, and before it the best so far where that waits as
    well: what is resumed from and what is detected with are those that `CheckpointStore.save` would
    have left, but for the newest epochs where the process is killed. Files are written as there: a
    killed writer leaves the checkpoint before it whole.

    What fails in the thread is raised by the next call, and no later one is written.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        state = store.state()
        self._best = (state.best, state.best_value) if state else None
        self._waiting: list[_Waiting] = []
        self._is_writing = self._has_ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="uadray-checkpoints", daemon=True)

    def __enter__(self) -> Self:
        _saving[self._store._url] = self
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.settle()
        finally:
            _saving.pop(self._store._url, None)
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
            self._thread.join()

    def save(
        self,
        epoch: int,
        model: nn.Module,
        optimizer: "Optimizers | torch.optim.Optimizer | None",
        value: float | None,
        since: int = 0,
    ) -> None:
        """As `CheckpointStore.save`, to be written soon."""
        self.check()
        known = _measured(value)
        is_best = self._best is None or _is_best(self._best, epoch, known, since)
        if is_best:
            self._best = epoch, known
        one = _Waiting(
            epoch=epoch,
            snapshot=_Snapshot.of(model, optimizer, copied=True),
            value=known,
            since=since,
            is_best=is_best,
        )
        with self._changed:
            before = [] if is_best else [w for w in self._waiting if w.is_best][-1:]
            self._waiting = [*before, one]
            self._changed.notify_all()

    def check(self) -> None:
        """Raise what has failed in the thread."""
        if self._error is not None:
            raise self._error

    def settle(self) -> None:
        """Wait until all is written."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or not (self._waiting or self._is_writing)
            )
        self.check()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_ended)
                if not self._waiting:
                    return
                one, self._is_writing = self._waiting.pop(0), True
            try:
                self._store._write(one.epoch, one.snapshot.on_host(), one.value, one.since)
            except BaseException as error:
                self._error = error
            with self._changed:
                self._is_writing = False
                if self._error is not None:
                    self._waiting.clear()
                    self._has_ended = True
                self._changed.notify_all()
                if self._error is not None:
                    return


_saving: dict[str, BackgroundSaves] = {}
"""By the folder of the checkpoints: who writes there in this process."""
