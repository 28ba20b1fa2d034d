"""Checkpoints: nothing is lost, nothing damaged is taken, nothing foreign is loaded."""

import io
import itertools
import json
import os
import pickletools
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_cohorts import SHAPE, tiny_vae
from torch import nn

from uadray.errors import CheckpointError
from uadray.methods import build
from uadray.runs.checkpoint import CheckpointStore

IDENTITY = "0123456789abcdef-fedcba9876543210"


def trained(seed: int = 0, latent_size: int = 8) -> tuple[nn.Module, torch.optim.Adam]:
    """A VAE and its optimiser after two steps."""
    torch.manual_seed(seed)
    model = build(tiny_vae(3, latent_size=latent_size).method, SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    for _ in range(2):
        x = torch.rand(2, 1, *SHAPE)
        optimizer.zero_grad()
        model(x, x, torch.randn(2, latent_size))["loss"].backward()
        optimizer.step()
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Adam) -> None:
    x = torch.linspace(0, 1, 2 * 16**3).view(2, 1, *SHAPE)
    optimizer.zero_grad()
    model(x, x, torch.ones(2, 8))["loss"].backward()
    optimizer.step()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoint").iterdir())


def test_model_and_optimiser_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    CheckpointStore(str(tmp_path), IDENTITY).save(1, model, optimizer, 0.5)
    other, fresh = trained(seed=1)
    store = CheckpointStore(str(tmp_path), IDENTITY)
    store.load_model(other, 1)
    store.load_optimizer(fresh, 1)
    assert_same(model.state_dict(), other.state_dict())
    saved, loaded = optimizer.state_dict(), fresh.state_dict()
    assert saved["param_groups"] == loaded["param_groups"]
    assert saved["state"].keys() == loaded["state"].keys()
    assert len(saved["state"]) == len(list(model.parameters()))
    for index, entry in saved["state"].items():
        assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
        assert_same(entry, loaded["state"][index])
    # What follows is the same too, whatever memory layout the tensors came back in.
    step(model, optimizer)
    step(other, fresh)
    assert_same(model.state_dict(), other.state_dict())


def test_the_best_and_the_last_are_kept_and_no_other(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    models = {}
    seen = []
    for epoch, value in enumerate([0.9, 0.5, 0.7, 0.6], start=1):
        models[epoch], optimizer = trained(seed=epoch)
        state = store.save(epoch, models[epoch], optimizer, value)
        assert state == store.state()
        seen.append((state.last, state.best, state.best_value))
    assert seen == [(1, 1, 0.9), (2, 2, 0.5), (3, 2, 0.5), (4, 2, 0.5)]
    assert names(tmp_path) == ["epoch-00002", "epoch-00004", "state.json"]
    for epoch in (2, 4):
        loaded, _ = trained(seed=9)
        store.load_model(loaded, epoch)
        assert_same(models[epoch].state_dict(), loaded.state_dict())
    store.save(5, models[4], optimizer, 0.4)
    assert names(tmp_path) == ["epoch-00005", "state.json"]


def test_an_epoch_written_twice_counts_as_written_last(tmp_path: Path) -> None:
    """A fit that was cut short between its checkpoint and its summary is made again."""
    store = CheckpointStore(str(tmp_path), IDENTITY)
    store.save(1, trained(seed=1)[0], None, 0.5)
    second, _ = trained(seed=2)
    state = store.save(1, second, None, 0.5000001)
    loaded, _ = trained(seed=3)
    store.load_model(loaded, state.best)
    assert_same(second.state_dict(), loaded.state_dict())
    assert state.best_value == 0.5000001


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found(tmp_path: Path, name: str, place: float) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    model, optimizer = trained()
    store.save(3, model, optimizer, 0.5)
    path = tmp_path / "checkpoint" / "epoch-00003" / name
    content = bytearray(path.read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    load: Callable[[], None] = (
        partial(store.load_model, model, 3)
        if name.startswith("model")
        else partial(store.load_optimizer, optimizer, 3)
    )
    with pytest.raises(
        CheckpointError, match=rf"{name} is damaged: .*fit again into another folder"
    ):
        load()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"last": 3}',
        b'{"last": "3", "best": 1, "best_value": 0.1, "digests": {}, "identity": ""}',
        b'{"last": 1, "best": 1, "best_value": 0.1, "digests": {}, "identity": ""}',
    ],
)
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    store.save(1, trained()[0], None, 0.5)
    (tmp_path / "checkpoint" / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged.*fit again"):
        store.state()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    model, _ = trained()
    store.save(3, model, None, 0.5)
    (tmp_path / "checkpoint" / "epoch-00003" / "model.safetensors").unlink()
    expected = r"epoch-00003/model\.safetensors is missing: .*fit again into another folder"
    with pytest.raises(CheckpointError, match=expected):
        store.load_model(model, 3)


def test_another_identity_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    CheckpointStore(str(tmp_path), IDENTITY).save(1, model, optimizer, 0.5)
    other = CheckpointStore(str(tmp_path), "other-cohort")
    before = (tmp_path / "checkpoint" / "state.json").read_bytes()
    for act in (
        other.state,
        lambda: other.load_model(model, 1),
        lambda: other.save(2, model, optimizer, 0.1),
    ):
        with pytest.raises(CheckpointError, match=f"{IDENTITY}.*other-cohort.*choose another"):
            act()
    assert (tmp_path / "checkpoint" / "state.json").read_bytes() == before
    assert CheckpointStore(str(tmp_path), IDENTITY).state() is not None


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    store.save(1, trained()[0], None, 0.5)
    with pytest.raises(CheckpointError, match=r"another architecture(?s:.*)size mismatch"):
        store.load_model(trained(latent_size=16)[0], 1)


def test_a_checkpoint_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    assert store.state() is None
    half = tmp_path / "checkpoint" / "epoch-00007"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert store.state() is None
    model, optimizer = trained()
    store.save(1, model, optimizer, 0.5)
    state = store.state()
    assert state is not None
    assert (state.last, state.best) == (1, 1)
    assert names(tmp_path) == ["epoch-00001", "state.json"]
    with pytest.raises(CheckpointError, match="missing"):
        store.load_model(model, 7)


def test_files_are_safetensors_and_json(tmp_path: Path) -> None:
    model, optimizer = trained()
    CheckpointStore(str(tmp_path), IDENTITY).save(1, model, optimizer, 0.5)
    written = [p for p in (tmp_path / "checkpoint").rglob("*") if p.is_file()]
    assert sorted(p.name for p in written) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    for path in written:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + length]), dict)
        else:
            assert json.loads(content)["last"] == 1
        assert not content.startswith(b"PK")
        with pytest.raises(ValueError, match=r"opcode|pickle"):
            pickletools.dis(content, out=io.StringIO())


def test_a_save_that_is_killed_leaves_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), IDENTITY)
    model, optimizer = trained()
    store.save(1, model, optimizer, 1.0)
    reloaded, fresh = trained(seed=1)
    rng = np.random.default_rng(0)
    cut_short = 0
    for _ in range(20):
        state = store.state()
        assert state is not None
        child = os.fork()
        if child == 0:
            try:
                for epoch in itertools.count(state.last + 1):
                    store.save(epoch, model, optimizer, 1 / epoch)
            finally:
                os._exit(1)
        while store.state() == state:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = store.state()
        assert now is not None
        assert now.last > state.last
        store.load_model(reloaded, now.last)
        store.load_model(reloaded, now.best)
        store.load_optimizer(fresh, now.last)
        known = {"state.json", f"epoch-{now.last:05d}", f"epoch-{now.best:05d}"}
        cut_short += bool(set(names(tmp_path)) - known)
    assert cut_short > 0  # some were killed in the middle
    store.save(now.last + 1, model, optimizer, 0.0)
    assert names(tmp_path) == [f"epoch-{now.last + 1:05d}", "state.json"]
