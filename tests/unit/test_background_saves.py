"""Checkpoints that a thread writes are those that would have been written at once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from uadray import files
from uadray.runs.checkpoint import BackgroundSaves, CheckpointStore, _Snapshot
from uadray.runs.state import State


def model_of(epoch: int) -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(epoch)
    return model


def fitted(epoch: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and an optimiser whose tensors are those of an epoch alone."""
    model = model_of(epoch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, epoch)
    optimizer.step()
    return model, optimizer


class Slow(CheckpointStore):
    """Writes when it may, and counts what it writes."""

    def __init__(self, url: str, identity: str = "x") -> None:
        super().__init__(url, identity)
        self.may_write, self.epochs = threading.Event(), list[int]()

    def _write(self, epoch: int, snapshot: _Snapshot, value: float, since: int) -> State:
        assert self.may_write.wait(30)
        self.epochs.append(epoch)
        return super()._write(epoch, snapshot, value, since)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SEQUENCES = [
    [0.5, 0.4, 0.3, 0.2],
    [0.2, 0.3, 0.4, 0.5],
    [0.5, 0.2, 0.4, 0.3, 0.6],
    [0.5, 0.2, 0.2, 0.2],
    [None, 0.3, None, None],
    [0.3, None, 0.1, None],
    [0.4, 0.9, 0.1, 0.8, 0.05, 0.7],
]


@pytest.mark.parametrize("values", SEQUENCES)
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("since", [0, 2])
def test_what_is_left_is_what_saves_at_once_leave(
    values: list[float | None], before: int, since: int, tmp_path: Path
) -> None:
    """However many epochs the thread misses while it writes."""
    there, slow = CheckpointStore(str(tmp_path / "at-once"), "x"), Slow(str(tmp_path / "later"))
    with BackgroundSaves(slow) as saves:
        for epoch, value in enumerate(values, start=1):
            # An epoch of a later phase does not know of the best of the one before.
            from_here = since if epoch > since else 0
            model, optimizer = fitted(epoch)
            there.save(epoch, model, optimizer, value, from_here)
            saves.save(epoch, model, optimizer, value, from_here)
            if epoch == before:
                slow.may_write.set()
                saves.settle()
                slow.may_write.clear()
        slow.may_write.set()
    assert contents(tmp_path / "at-once") == contents(tmp_path / "later")
    assert len(slow.epochs) <= before + 3


def test_the_newest_wins_and_no_step_changes_what_is_written(tmp_path: Path) -> None:
    store = Slow(str(tmp_path))
    with BackgroundSaves(store) as saves:
        for epoch in range(1, 21):
            model, optimizer = fitted(epoch)
            saves.save(epoch, model, optimizer, 1 / epoch)
            with torch.no_grad():  # the next step
                for parameter in model.parameters():
                    parameter.fill_(-1)
            for entry in optimizer.state.values():
                entry["exp_avg"].fill_(-1)
        store.may_write.set()
    assert store.epochs[-1] == 20
    assert len(store.epochs) <= 2  # one may have been begun
    store.load_model(model := model_of(0), 20)
    assert torch.equal(model.weight, torch.full((2, 3), 20.0))
    read, optimizer = fitted(0)
    store.load_optimizer(optimizer, 20)
    model, wanted = fitted(20)
    # By parameter: the state that was read is in no order.
    for one, other in zip(read.parameters(), model.parameters(), strict=True):
        here, there = optimizer.state[one], wanted.state[other]
        assert all(torch.equal(here[key], there[key]) for key in there)


def test_saving_does_not_wait_and_reading_does(tmp_path: Path) -> None:
    store = Slow(str(tmp_path))
    with BackgroundSaves(store) as saves:
        saves.save(1, *fitted(1), 0.5)
        threading.Timer(0.2, store.may_write.set).start()
        assert not store.epochs
        state = CheckpointStore(str(tmp_path), "x").state()  # as a report that measures it
        assert state is not None
        assert state.last == 1


def test_a_failure_comes_up_at_the_next_step_and_ends_the_writing(tmp_path: Path) -> None:
    class Full(CheckpointStore):
        def _write(self, epoch: int, *args: object) -> State:  # type: ignore[override]
            if epoch > 1:
                raise OSError(28, "No space left on device")
            return super()._write(epoch, *args)  # type: ignore[arg-type]

    store = Full(str(tmp_path), "x")

    def go_on() -> None:
        with BackgroundSaves(store) as saves:
            saves.save(1, *fitted(1), 0.5)
            saves.settle()
            saves.save(2, *fitted(2), 0.4)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:  # steps
                saves.check()
                time.sleep(0.01)

    with pytest.raises(OSError, match="No space left"):
        go_on()
    state = store.state()
    assert state is not None
    assert (state.last, state.best) == (1, 1)


def test_a_failure_of_the_last_one_comes_up_at_the_end(tmp_path: Path) -> None:
    class Full(CheckpointStore):
        def _write(self, *args: object) -> State:
            raise OSError(28, "No space left on device")

    store = Full(str(tmp_path), "x")
    with pytest.raises(OSError, match="No space left"), BackgroundSaves(store) as saves:
        saves.save(1, *fitted(1), 0.5)


def test_what_ends_a_fit_leaves_what_was_saved(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "x")

    def stopped() -> None:
        with BackgroundSaves(store) as saves:
            saves.save(1, *fitted(1), 0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    state = store.state()
    assert state is not None
    assert state.last == 1


def test_a_killed_writer_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), "x")
    first = store.save(1, *fitted(1), 0.5)

    def cut_short(write: Callable[..., None]) -> Callable[..., None]:
        def some(url: str, content: bytes) -> None:
            if url.endswith("optimizer.safetensors"):
                raise SystemExit  # as where the process is killed: nothing after it
            write(url, content)

        return some

    def go_on() -> None:
        with BackgroundSaves(store) as saves:
            saves.save(2, *fitted(2), 0.4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_bytes", cut_short(files.write_bytes))
        with pytest.raises(SystemExit):
            go_on()
    assert store.state() == first
    store.load_model(model := model_of(0), 1)
    assert torch.equal(model.weight, torch.full((2, 3), 1.0))
    again = store.save(2, *fitted(2), 0.4)
    assert (again.last, again.best) == (2, 2)
