"""Methods that iterate, through fit and scoring: calibrated once, no subject scored twice.

On volumes of 20 low slices, as Baur 2018 evaluates.
"""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cohorts import NUM_TEST, NUM_THRESHOLD, NUM_TRAIN, write_healthy, write_lesioned

from uadray.config import Experiment, FitConfig
from uadray.evaluation.job import evaluate
from uadray.evaluation.protocols import EvaluateConfig
from uadray.methods import MethodSettings
from uadray.methods.gan import AnoGAN
from uadray.methods.restoration import Restore, VAERestoration
from uadray.methods.vqvae import Transformer
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.train.job import fit
from uadray.train.settings import ScaleConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.timeout(300),
]

SHAPE = (20, 16, 16)
NUM = NUM_THRESHOLD + NUM_TEST
RESTORE = Restore(steps=12, first_steps=8, tv_weights=(0.0, 0.2, 1.0), search_volumes=3)
RESTORATION = VAERestoration.Settings(latent_size=4, widths=(8, 16), restore=RESTORE)
CONFIG = EvaluateConfig.of("baur2018", num_resamples=20, batch_size=2)


def tiny(method: MethodSettings, epochs: int = 2, batch_size: int = 64) -> Experiment:
    fit_config = FitConfig(epochs=epochs, batch_size=batch_size, precision="float32")
    return Experiment(method=method, fit=fit_config)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("healthy"), shape=SHAPE)


@pytest.fixture(scope="module")
def lesioned(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("lesioned"), shape=SHAPE)


@pytest.fixture(scope="module")
def run(healthy: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tiny(RESTORATION), healthy, str(tmp_path_factory.mktemp("runs") / "run"))


def kept(run: Run) -> dict[str, int]:
    folder = Path(run.url, "scores", "stroke.zarr", "counts")
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.npz")}


def state(run: Run) -> dict[str, torch.Tensor]:
    return load_detector(run).state_dict()


def test_the_best_epoch_is_calibrated_in_one_file(run: Run) -> None:
    best_state = CheckpointStore.of(run).state()
    assert best_state is not None
    assert best_state.calibrated
    weight = state(run)["tv_weight"].item()
    assert any(weight == pytest.approx(candidate) for candidate in RESTORE.tv_weights)


def test_a_fit_cut_short_at_its_calibration_calibrates_again(
    run: Run, healthy: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: object) -> None:
        raise OSError("the disk is full")

    url = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save_calibrated", cut)
        with pytest.raises(OSError, match="full"):
            fit(tiny(RESTORATION), healthy, url)
    again = fit(tiny(RESTORATION), healthy, url)
    expected, got = state(run), state(again)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_scoring_cut_short_repeats_no_subject(run: Run, lesioned: Cohort) -> None:
    class Cut(Exception):
        pass

    reported: list[int] = []

    def report(count: int) -> None:
        reported.append(count)
        if sum(reported) >= 4:
            raise Cut

    with pytest.raises(Cut):
        evaluate([run], lesioned, config=CONFIG, report=report)
    # Actors end what they have in hand, which may be all; then these three are as if they had not.
    before: dict[str, int] = {}
    while before != (before := kept(run)):
        time.sleep(0.5)
    assert len(before) >= 4
    for name in sorted(before)[-3:]:
        Path(run.url, "scores", "stroke.zarr", "counts", name).unlink()
        del before[name]

    again: list[int] = []
    (record,) = evaluate([run], lesioned, config=CONFIG, report=again.append)
    after = kept(run)
    assert len(after) == NUM
    assert {name: after[name] for name in before} == before
    assert again[0] == len(before)
    assert sum(again) == NUM
    check(record)


def check(record: dict[str, Any]) -> None:
    assert record["protocol"]["name"] == "baur2018"
    assert record["protocol"]["changes"] == {}
    assert record["threshold"]["rule"] == "percentile_98"
    for name in ("dice_s_mean", "dice_s_std", "auprc"):
        assert 0 <= record["metrics"][name] <= 1
    assert record["seconds_per_volume"] > 0
    assert record["seconds_per_slice"] == pytest.approx(record["seconds_per_volume"] / 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        RESTORATION,
        Transformer.Settings(
            widths=(8, 16), num_codes=8, code_size=4, model_size=16, depth=1, heads=1
        ),
        AnoGAN.Settings(widths=(8, 16), latent_size=4, bottleneck=4, search_steps=5),
    ],
    ids=lambda method: method.label,
)
def test_two_workers_fit_and_score_each(
    method: MethodSettings, healthy: Cohort, lesioned: Cohort, tmp_path: Path
) -> None:
    # One step an epoch over all slices: otherwise two workers form other batches than one.
    what = tiny(method, epochs=4, batch_size=NUM_TRAIN * SHAPE[0])
    two = fit(what, healthy, str(tmp_path / "two"), scale=ScaleConfig(num_workers=2))
    if method is RESTORATION:
        # Codes begin at features of each worker's batch, and a game drifts apart.
        one = fit(what, healthy, str(tmp_path / "one"))
        for a, b in zip(one.metrics(), two.metrics(), strict=True):
            for key in ("train/loss", "validation/reconstruction"):
                assert b[key] == pytest.approx(a[key], rel=1e-4), key
        assert torch.equal(state(two)["tv_weight"], state(one)["tv_weight"])
    assert all(tensor.isfinite().all() for tensor in state(two).values())
    (record,) = evaluate([two], lesioned, config=CONFIG)
    check(record)
