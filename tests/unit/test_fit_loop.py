"""The fit loop without Ray: resumed runs, stopping, named failures, what a detector is shown."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cohorts import SHAPE, tiny_vae, write_healthy
from torch import Tensor, nn

from uadray.config import Experiment, experiment
from uadray.data.batch import Batch
from uadray.data.erasing import erased_mask, sample_erasing
from uadray.data.sampling import epoch_groups, slice_order
from uadray.errors import UadrayError
from uadray.methods import GradientDetector, Learned, build
from uadray.runs.checkpoint import CheckpointStore
from uadray.store import Cohort
from uadray.train.fit import Fit, NotFiniteError, healthy_reconstruction
from uadray.train.precision import reduced_precision
from uadray.train.steps import Metrics

CPU = torch.device("cpu")
KEYS = {
    "epoch",
    "train/loss",
    "train/reconstruction",
    "train/kl",
    "validation/reconstruction",
    "train/active_units",
    "seconds",
    "seconds/data",
    "samples_per_second",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_healthy(tmp_path_factory.mktemp("cohort"))


def train_batches(cohort: Cohort, experiment: Experiment) -> Callable[[int], Iterator[Batch]]:
    """What `TrainingStream` gives one worker, read without Ray."""
    images = cohort.read("image", 0, int(cohort.attributes["num_rows"]))
    rows, fit = cohort.rows("train"), experiment.fit

    def batches(epoch: int) -> Iterator[Batch]:
        groups = epoch_groups(rows, cohort.shard, seed=fit.seed, epoch=epoch)
        ids, samples = [], []
        for number, group in enumerate(groups):
            volumes = images[group]
            if experiment.method.ndim == 3:  # type: ignore[union-attr]
                ids.append(group)
                samples.append(volumes)
                continue
            order = slice_order(volumes.any((2, 3)), seed=fit.seed, epoch=epoch, group=number)
            ids.append(group[order[:, 0]] * SHAPE[0] + order[:, 1])
            samples.append(volumes[order[:, 0], order[:, 1]])
        all_ids, all_samples = (torch.from_numpy(np.concatenate(a)) for a in (ids, samples))
        for start in range(0, len(all_ids), fit.batch_size):
            cut = slice(start, start + fit.batch_size)
            yield Batch(ids=all_ids[cut], images=all_samples[cut])

    return batches


def validation_batches(cohort: Cohort) -> list[Batch]:
    rows = cohort.rows("validation")
    images = np.concatenate([cohort.read("image", row, row + 1) for row in rows])
    return [
        Batch(ids=torch.tensor(rows[cut]), images=torch.from_numpy(images[cut]))
        for cut in (slice(0, 3), slice(3, None))
    ]


def fit(
    experiment: Experiment,
    cohort: Cohort,
    folder: Path,
    *,
    detector: GradientDetector | None = None,
    past: list[Metrics] | None = None,
    train: Callable[[int], Iterator[Batch]] | None = None,
    reported: list[Metrics] | None = None,
    stop_after: int | None = None,
    logged: list[list[Metrics]] | None = None,
    checkpoints: CheckpointStore | None = None,
    is_leaving: Callable[[], bool] = lambda: False,
    in_background: bool = False,
) -> tuple[GradientDetector, list[Metrics]]:
    """Fit from the newest checkpoint in `folder`; `stop_after` cuts the fit off, as a kill does."""
    if detector is None:
        torch.manual_seed(experiment.fit.seed)
        built = build(experiment.method, SHAPE)
        assert isinstance(built, GradientDetector)
        detector = built
    reported = [] if reported is None else reported

    def report(record: Metrics) -> None:
        reported.append(record)
        if record["epoch"] == stop_after:
            raise KeyboardInterrupt

    records = Fit(
        detector=detector,
        experiment=experiment,
        train=train or train_batches(cohort, experiment),
        validation=validation_batches(cohort),
        checkpoints=checkpoints or CheckpointStore(str(folder), experiment.fingerprint),
        report=report,
        is_leaving=is_leaving,
        in_background=in_background,
        records=past or [],
        device=CPU,
        log=lambda records: None if logged is None else logged.append(list(records)),
    ).run()
    return detector, records


def without_times(records: list[Metrics]) -> list[Metrics]:
    return [{k: v for k, v in r.items() if "second" not in k} for r in records]


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "experiment",
    [
        tiny_vae(3, strategy="cube", epochs=5),
        tiny_vae(2, strategy="cube", epochs=4, batch_size=32),
    ],
    ids=lambda e: e.name,
)
@pytest.mark.parametrize("in_background", [False, True])
def test_a_resumed_fit_ends_as_the_undisturbed_one(
    experiment: Experiment, in_background: bool, cohort: Cohort, tmp_path: Path
) -> None:
    whole, records = fit(experiment, cohort, tmp_path / "whole")
    assert [r["epoch"] for r in records] == list(range(1, experiment.fit.epochs + 1))
    past: list[Metrics] = []
    for stop_after in (1, 3):  # killed twice, each time resumed by a detector fresh from its seed
        with pytest.raises(KeyboardInterrupt):
            fit(
                experiment,
                cohort,
                tmp_path / "cut",
                past=list(past),
                reported=past,
                stop_after=stop_after,
                in_background=in_background,
            )
        assert past[-1]["epoch"] == stop_after
    resumed, resumed_records = fit(experiment, cohort, tmp_path / "cut", past=past)
    assert_same_weights(whole, resumed)
    assert without_times(resumed_records) == without_times(records)
    a, b = (CheckpointStore(str(tmp_path / n), experiment.fingerprint) for n in ("whole", "cut"))
    assert a.state() == b.state()


def test_checkpoints_between_epochs_cost_the_epochs_since(cohort: Cohort, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=5, checkpoint_every=2)
    whole, records = fit(experiment, cohort, tmp_path / "whole")
    past: list[Metrics] = []
    with pytest.raises(KeyboardInterrupt):
        fit(experiment, cohort, tmp_path / "cut", reported=past, stop_after=3)
    again: list[Metrics] = []
    resumed, resumed_records = fit(experiment, cohort, tmp_path / "cut", past=past, reported=again)
    assert [r["epoch"] for r in again] == [3, 4, 5]
    assert_same_weights(whole, resumed)
    assert without_times(resumed_records) == without_times(records)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_announced_loss_costs_no_epoch_and_changes_nothing(
    cohort: Cohort, tmp_path: Path, stop_after: int
) -> None:
    experiment = tiny_vae(3, epochs=6, checkpoint_every=2)
    whole, records = fit(experiment, cohort, tmp_path / "whole")
    past: list[Metrics] = []
    with pytest.raises(KeyboardInterrupt):
        fit(
            experiment,
            cohort,
            tmp_path / "cut",
            reported=past,
            stop_after=stop_after,
            is_leaving=lambda: True,
        )
    again: list[Metrics] = []
    resumed, resumed_records = fit(experiment, cohort, tmp_path / "cut", past=past, reported=again)
    assert [r["epoch"] for r in again] == list(range(stop_after + 1, 7))
    assert_same_weights(whole, resumed)
    assert without_times(resumed_records) == without_times(records)
    a, b = (CheckpointStore(str(tmp_path / n), experiment.fingerprint) for n in ("whole", "cut"))
    # The same epoch is the best one: an odd one, saved only to go on from, is not chosen.
    assert a.state() == b.state()


def test_no_record_is_lost_between_a_checkpoint_and_its_report(
    cohort: Cohort, tmp_path: Path
) -> None:
    class Killed(CheckpointStore):
        def save(self, epoch: int, *args: Any) -> Any:
            state = super().save(epoch, *args)
            if epoch == 2:
                raise KeyboardInterrupt
            return state

    experiment = tiny_vae(3, epochs=4)
    logged: list[list[Metrics]] = []
    killed = Killed(str(tmp_path), experiment.fingerprint)
    with pytest.raises(KeyboardInterrupt):
        fit(experiment, cohort, tmp_path, logged=logged, checkpoints=killed)
    _, records = fit(experiment, cohort, tmp_path, past=logged[-1])
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    _, whole = fit(experiment, cohort, tmp_path / "whole")
    assert without_times(records) == without_times(whole)


def test_a_finished_fit_is_left_as_it_is(cohort: Cohort, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=2)
    _, records = fit(experiment, cohort, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    reported: list[Metrics] = []

    def unread(epoch: int) -> Iterator[Batch]:
        raise AssertionError("a finished fit reads nothing")

    _, again = fit(experiment, cohort, tmp_path, past=records, reported=reported, train=unread)
    assert again == records
    assert reported == []
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_records_say_what_happened(cohort: Cohort, tmp_path: Path) -> None:
    reported: list[Metrics] = []
    experiment = tiny_vae(3, epochs=3)
    detector, records = fit(experiment, cohort, tmp_path, reported=reported)
    assert reported == records
    images = cohort.read("image", 0, int(cohort.attributes["num_rows"]))
    brain_share = float((images[cohort.rows("train")] > 0).mean())
    for number, record in enumerate(records, start=1):
        assert set(record) == KEYS
        assert record["epoch"] == number
        assert all(math.isfinite(value) and value > 0 for value in record.values())
        kl = record["train/kl"] / math.prod(SHAPE)  # its weight is 1
        # The loss takes the L1 over all voxels, the record over those of the brain.
        l1 = record["train/reconstruction"] * brain_share
        assert record["train/loss"] == pytest.approx(l1 + kl)
        rate = len(cohort.rows("train")) / record["samples_per_second"]
        assert 0 < rate <= record["seconds"]
    assert records[-1]["train/reconstruction"] < records[0]["train/reconstruction"]
    error = healthy_reconstruction(detector, validation_batches(cohort), CPU)
    assert records[-1]["validation/reconstruction"] == float(error[0] / error[1])
    state = CheckpointStore(str(tmp_path), experiment.fingerprint).state()
    assert state is not None
    values = [r["validation/reconstruction"] for r in records]
    assert (state.best_value, state.best) == (min(values), 1 + values.index(min(values)))


@pytest.mark.parametrize("batch_size", [8, 64])  # several steps an epoch, and a single one
def test_a_loss_that_explodes_is_named(cohort: Cohort, tmp_path: Path, batch_size: int) -> None:
    experiment = tiny_vae(3, epochs=4, batch_size=batch_size, learning_rate=1e30)
    with pytest.raises(NotFiniteError, match=r"3D-None.*epoch \d.*learning-rate \(it is 1e\+30\)"):
        fit(experiment, cohort, tmp_path)
    assert issubclass(NotFiniteError, UadrayError)


def test_samples_that_are_not_finite_are_named(cohort: Cohort, tmp_path: Path) -> None:
    experiment = tiny_vae(3, epochs=2)
    clean = train_batches(cohort, experiment)

    def spoilt(epoch: int) -> Iterator[Batch]:
        for batch in clean(epoch):
            images = batch.images.clone()
            if 17 in batch.ids:
                images[0, 8, 8, 8] = math.nan
            yield replace(batch, images=images)

    with pytest.raises(NotFiniteError, match="not finite in epoch 1"):
        fit(experiment, cohort, tmp_path, train=spoilt)
    assert CheckpointStore(str(tmp_path), experiment.fingerprint).state() is None


class Scripted(GradientDetector):
    """Reconstructs with an error that follows a script: one entry an epoch."""

    num_noise = 1

    def __init__(self, errors: list[float], epochs_done: int = 0) -> None:
        super().__init__(Learned(ndim=3), SHAPE)
        self.weight = nn.Parameter(torch.zeros(1))
        self._errors, self._epoch = errors, epochs_done

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor) -> dict[str, Tensor]:
        loss = (x_in - target).abs().mean() + self.weight.square().sum()
        return {"loss": loss, "reconstruction": loss, "kl": loss * 0}

    def eval(self) -> "Scripted":
        super().eval()
        self._epoch += 1
        return self

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        return x_BCZYX + self._errors[self._epoch - 1]


def test_patience_ends_a_fit_that_no_longer_gets_better(cohort: Cohort, tmp_path: Path) -> None:
    errors = [0.5, 0.3, 0.4, 0.2, 0.3, 0.4, 0.5, 0.1, 0.1, 0.1]
    experiment = tiny_vae(3, epochs=10, patience=3, checkpoint_every=4)
    _, records = fit(experiment, cohort, tmp_path, detector=Scripted(errors))
    assert len(records) == 7  # the best is the fourth; three more brought nothing
    state = CheckpointStore(str(tmp_path), experiment.fingerprint).state()
    assert state is not None
    assert (state.last, state.best) == (7, 4)
    again: list[Metrics] = []
    _, kept = fit(
        experiment, cohort, tmp_path, detector=Scripted(errors), past=records, reported=again
    )
    assert again == []
    assert kept == records
    _, patient = fit(
        replace(experiment, fit=replace(experiment.fit, patience=0)),
        cohort,
        tmp_path / "patient",
        detector=Scripted(errors),
    )
    assert len(patient) == 10


class Spy(Scripted):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__([0.1] * 9)
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x_in: Tensor, target: Tensor, noise: Tensor) -> dict[str, Tensor]:
        self.shown.append((x_in.clone(), target.clone(), noise.clone()))
        return super().forward(x_in, target, noise)


@pytest.mark.parametrize("strategy", ["none", "cube", "multi-cube", "half-volume"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_erasing_changes_the_input_and_never_the_target(
    cohort: Cohort, tmp_path: Path, strategy: str, ndim: int
) -> None:
    experiment = tiny_vae(ndim, strategy=strategy, fill="zero", epochs=1, batch_size=64)
    spy = Spy()
    fit(experiment, cohort, tmp_path, detector=spy)
    clean = list(train_batches(cohort, experiment)(0))
    assert len(spy.shown) == len(clean)
    changed = total = 0
    for (x_in, target, noise), batch in zip(spy.shown, clean, strict=True):
        assert torch.equal(target, batch.images.float()[:, None])
        assert x_in.shape == target.shape
        assert noise.shape == (len(target), 1)
        differs = (x_in != target).flatten(1)
        assert (x_in.flatten(1)[differs] == 0).all()
        changed, total = changed + int(differs.any(1).sum()), total + len(target)
    if strategy == "none":
        assert changed == 0
    else:
        # Half of the samples are erased; some boxes and sides hold no brain.
        assert 0.15 * total < changed < 0.75 * total


@pytest.mark.parametrize("ndim", [2, 3])
def test_each_epoch_records_what_it_erased(cohort: Cohort, tmp_path: Path, ndim: int) -> None:
    experiment = tiny_vae(ndim, strategy="multi-cube", epochs=2, batch_size=7)
    _, records = fit(experiment, cohort, tmp_path, detector=Spy())
    for epoch, record in enumerate(records):
        erased, no_brain, shares, of_brain = 0, 0, [], []
        for batch in train_batches(cohort, experiment)(epoch):
            spatial = tuple(batch.images.shape[1:])
            where = sample_erasing(
                experiment.erasing, batch.ids, seed=0, epoch=epoch, spatial=spatial
            )
            mask, brain = erased_mask(batch.images, where), (batch.images > 0).numpy()
            for one in np.flatnonzero(where.erased):
                both = int((mask[one] & brain[one]).sum())
                shares.append(mask[one].mean())
                of_brain.append(both / brain[one].sum())
                erased, no_brain = erased + 1, no_brain + (both == 0)
        assert record["erasing/samples"] == erased > 0
        assert record["erasing/share"] == pytest.approx(np.mean(shares), rel=1e-9)
        assert record["erasing/brain_share"] == pytest.approx(np.mean(of_brain), rel=1e-9)
        assert record["erasing/no_brain"] == pytest.approx(no_brain / erased, rel=1e-9)


def test_noise_belongs_to_the_sample_and_the_epoch(cohort: Cohort, tmp_path: Path) -> None:
    by_batch_size = []
    for batch_size in (8, 12):
        experiment = tiny_vae(3, epochs=2, batch_size=batch_size)
        spy = Spy()
        fit(experiment, cohort, tmp_path / str(batch_size), detector=spy)
        ids = torch.cat([b.ids for e in (0, 1) for b in train_batches(cohort, experiment)(e)])
        noise = torch.cat([noise[:, 0] for _, _, noise in spy.shown])
        epochs = [0] * (len(ids) // 2) + [1] * (len(ids) // 2)
        by_batch_size.append(
            dict(zip(zip(epochs, ids.tolist(), strict=True), noise.tolist(), strict=True))
        )
    assert by_batch_size[0] == by_batch_size[1]
    assert len(set(by_batch_size[0].values())) == len(by_batch_size[0])


@pytest.mark.parametrize("ndim", [2, 3])
def test_healthy_reconstruction_is_the_mean_error_over_the_brain(cohort: Cohort, ndim: int) -> None:
    torch.manual_seed(5)
    detector = build(tiny_vae(ndim).method, SHAPE)
    with torch.no_grad():
        detector.decoder[-1].conv.bias += 0.4  # type: ignore[union-attr,index]
    errors = []
    for row in cohort.rows("validation"):
        image = cohort.read("image", row, row + 1)[0].astype(np.float32)
        brain = cohort.read("brain", row, row + 1)[0]
        with torch.no_grad():
            output = detector.reconstruct(torch.from_numpy(image)[None, None])[0, 0].numpy()
        errors.append(np.abs(image - output)[brain].astype(np.float64))
    total = healthy_reconstruction(detector, validation_batches(cohort), CPU)
    assert total.dtype == torch.float64
    voxels = np.concatenate(errors)
    assert int(total[1]) == len(voxels)
    assert float(total[0]) == pytest.approx(voxels.sum(), rel=1e-6)
    assert voxels.mean() > 0.01


def test_auto_precision_avoids_the_grids_that_bfloat16_gets_wrong() -> None:
    small, large, flat = (
        build(experiment(name).method, (side,) * 3)
        for name, side in (("3D-None", 16), ("3D-None", 32), ("2D-None", 16))
    )
    assert all(isinstance(d, GradientDetector) for d in (small, large, flat))
    assert not reduced_precision("auto", small, CPU)
    assert reduced_precision("bfloat16", small, CPU)
    assert not reduced_precision("float32", large, CPU)
    native = bool(torch.cpu._is_avx512_bf16_supported())
    assert reduced_precision("auto", large, CPU) == reduced_precision("auto", flat, CPU) == native
