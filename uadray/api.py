"""The Python interface: prepare a cohort, fit, sweep, evaluate, predict, export.

    import uadray

    cohort = uadray.prepare("bids", "DATA/ds002748", "runs/healthy.zarr", hold_out=12).cohort
    run = uadray.fit("3D-Cube-n", cohort, "runs/fits/3D-Cube-n", epochs=100)
    (record,) = uadray.evaluate(run, uadray.open_cohort("runs/stroke.zarr"))
    print(record["metrics"]["dice_d"], record["intervals"]["dice_d"])
    swept = uadray.sweep("bengs-latent", cohort, "runs/latent", evaluate="runs/stroke.zarr")
    print(swept.dataframe(), swept.best().url, swept.report)
    prediction = uadray.predict(run, "scan.nii.gz", out="predicted")
    print(prediction.summary["proposal"], prediction.summary["warnings"])
    uadray.export(run, "models/3D-Cube-n")

Each does what its job does (`jobs/train.py` and so on) and leaves the same files, so that a call
made again repeats nothing that is finished.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from uadray import config as _config
from uadray import fields, files
from uadray.config import Experiment, with_fit
from uadray.device import Device
from uadray.errors import ConfigError, PredictError, UadrayWarning
from uadray.prediction import outputs, places
from uadray.prediction.folder import Predicted
from uadray.prediction.inputs import find_items
from uadray.prediction.model import Model, model_of_run
from uadray.prediction.model_folder import export_model
from uadray.prediction.model_folder import open_model as _open_model
from uadray.prediction.scan import Prediction, predict_scan
from uadray.prediction.settings import PredictConfig, check_age
from uadray.runs.ensembles import make_ensemble, with_members
from uadray.runs.folder import Run
from uadray.store import Cohort, open_cohort
from uadray.train.settings import ScaleConfig, TrackConfig

if TYPE_CHECKING:
    from uadray.tune.job import Sweep
    from uadray.tune.space import Space

__all__ = [
    "ensemble",
    "evaluate",
    "evaluate_maps",
    "experiment",
    "export",
    "fit",
    "fit_folds",
    "open_cohort",
    "open_model",
    "open_run",
    "predict",
    "predict_folder",
    "sweep",
]

Place = str | Path
"""A local path or, as a string, any fsspec URL."""


def experiment(name: str, **fit: Any) -> Experiment:
    """The experiment of that name, such as `3D-Cube-n`, with some settings of its fit changed.

    Args:
        name: As in the papers.
        fit: Fields of `FitConfig`, such as `epochs=20, seed=1`.

    Raises:
        ConfigError: there is none of that name, or a setting is out of range.
    """
    return with_fit(_config.experiment(name), **fit)


def open_run(url: Place) -> Run:
    """Open a run folder.

    Raises:
        RunError: there is none.
    """
    return Run.open(str(url))


def fit(
    method: str | Experiment,
    cohort: Place | Cohort,
    out: Place,
    *,
    scale: ScaleConfig | None = None,
    track: TrackConfig | None = None,
    **fit: Any,
) -> Run:
    """Fit an experiment on a healthy cohort and leave a run folder, as `jobs/train.py`.

    Args:
        method: An experiment, or the name of one.
        cohort: A sealed healthy cohort, or where it lies.
        out: The run folder. A finished one is opened as it is.
        scale: Workers: `ScaleConfig(num_workers=2)` fits on Ray Train.
        track: Where else epochs are shown.
        fit: Fields of `FitConfig` to change, such as `epochs=20`.

    Raises:
        UadrayError: see `train.job.fit`.
    """
    from uadray.train import job

    changed = _chosen(method, fit)
    scale = scale and fields.instance("scale", ScaleConfig, scale)
    return job.fit(changed, _cohort(cohort), str(out), scale=scale, track=track)


def fit_folds(
    method: str | Experiment,
    cohort: Place | Cohort,
    out: Place,
    folds: int,
    *,
    scale: ScaleConfig | None = None,
    track: TrackConfig | None = None,
    **fit: Any,
) -> list[Run]:
    """Fit an experiment once for each fold of a healthy cohort's people, as `--folds`.

    Args:
        method: As for `fit`, and so are the others.
        cohort: See there.
        out: Folder of the runs, which `evaluate`, `ensemble` and reports take.
        folds: Their number, at least 2; each person is held back once.
        scale: See there.
        track: See there.
        fit: See there.

    Raises:
        UadrayError: see `train.job.fit_folds`.
    """
    from uadray.train import job

    changed, scale = _chosen(method, fit), scale and fields.instance("scale", ScaleConfig, scale)
    return job.fit_folds(changed, _cohort(cohort), str(out), folds, scale=scale, track=track)


def ensemble(
    runs: Sequence[Run | Place], out: Place, *, combine: Literal["mean", "median"] = "mean"
) -> Run:
    """Combine finished runs into one, as `jobs/ensemble.py`.

    Args:
        runs: Members: fits on one cohort whose scores have one range, such as seeds or folds.
        out: The run folder. One of the same members is opened as it is.
        combine: The mean or the median of their post-processed scores, voxel by voxel.

    Raises:
        UadrayError: see `runs.ensembles.make_ensemble`.
    """
    opened = [one if isinstance(one, Run) else open_run(one) for one in runs]
    return make_ensemble(opened, str(out), combine=combine)


def sweep(
    space: "Place | Space",
    cohort: Place | Cohort,
    out: Place,
    *,
    evaluate: Place | Cohort | Sequence[Place | Cohort] = (),
    name: str = "",
    track: TrackConfig | None = None,
    **settings: Any,
) -> "Sweep":
    """Fit, evaluate and report every trial of a space, as `jobs/tune.py`.

    Args:
        space: What is compared, as `Space(experiments=("3D-Cube-n",), vary={"method.slope": (0.0,
            0.1)})`, the name of a preset, or a file such as the `space.toml` of a sweep.
        cohort: A sealed healthy cohort.
        out: Folder of the sweep. Trials that are finished there are not repeated.
        evaluate: Cohorts with lesions on which finished trials are evaluated.
        name: In the title of the report.
        track: Where else the epochs of trials are shown.
        settings: Fields of `SweepConfig`, such as `scheduler="asha"`.

    Returns:
        How it ended: `.dataframe()` has a row for each trial, `.best()` is a run, `.report` the
        page's place.

    Raises:
        UadrayError: see `tune.job.SweepJob.run`.
    """
    from uadray.tune.job import SweepJob
    from uadray.tune.settings import SweepConfig
    from uadray.tune.space import Space, named_space

    several = [evaluate] if isinstance(evaluate, (Cohort, str, Path)) else evaluate
    return SweepJob(
        space=named_space(str(space))
        if isinstance(space, (str, Path))
        else fields.instance("space", Space, space),
        cohort=_url(cohort),
        out=str(out),
        name=name or (Path(space).stem if isinstance(space, (str, Path)) else ""),
        evaluate=tuple(map(_url, several)),
        sweep=fields.overlay(SweepConfig(), settings, "sweep"),
        track=track or TrackConfig(),
    ).run()


def evaluate(
    runs: Run | Place | Sequence[Run | Place],
    cohort: Place | Cohort,
    *,
    healthy: Place | Cohort | None = None,
    controls: Place | Cohort | None = None,
    protocol: str = "bengs2021",
    **settings: Any,
) -> list[dict[str, Any]]:
    """Evaluate runs on a cohort with lesions, as `jobs/evaluate.py`.

    Args:
        runs: One run or several. Members of an ensemble are evaluated as well, so that nothing is
            scored twice and reports say what it gains.
        cohort: Sealed, with lesions.
        healthy: Fit the threshold on the validation part of this cohort instead.
        controls: A healthy cohort whose test part is predicted, too: false alarms, and how well
            scores separate patients from healthy people.
        protocol: Gives all settings their defaults.
        settings: Fields of `EvaluateConfig` to change, such as `num_resamples=200`.

    Returns:
        For each run what its `evaluation/<cohort>.json` holds: `metrics`, `intervals`,
        `threshold`, `subjects` and more.

    Raises:
        UadrayError: see `evaluation.job.evaluate`.
    """
    from uadray.evaluation import job
    from uadray.evaluation.protocols import EvaluateConfig

    several = [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    opened = [one if isinstance(one, Run) else open_run(one) for one in several]
    distinct, left_out = with_members(opened)
    for reason in left_out:
        warnings.warn(reason, UadrayWarning, stacklevel=2)
    records = job.evaluate(
        distinct,
        _cohort(cohort),
        healthy=None if healthy is None else _cohort(healthy),
        controls=None if controls is None else _cohort(controls),
        config=EvaluateConfig.of(protocol, **settings),  # type: ignore[arg-type]
    )
    by_url = {run.url: record for run, record in zip(distinct, records, strict=True)}
    return [by_url[run.url] for run in opened]


def evaluate_maps(
    maps: Place,
    cohort: Place | Cohort,
    out: Place,
    *,
    name: str,
    pattern: str = "",
    direction: str = "check",
    score_range: tuple[float, float] | None = None,
    seed: int = 0,
    missing: str = "nothing-found",
    resample: str = "auto",
    by_affine: bool = False,
    protocol: str = "bengs2021",
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate anomaly maps that other software made, as `jobs/evaluate.py --maps`.

    They are kept in a run folder, which stands in every table and report as any other, and which
    `open_run` opens.

    Args:
        maps: A folder of NIfTI files that are named by the scans' ids, or a table (CSV, TSV) with
            the columns `id` and `path`.
        cohort: Whose scans they are; sealed, with lesions.
        out: The run folder.
        name: Of the method, in tables.
        pattern: Which files of the folder are maps, such as `*_anomaly.nii.gz`.
        direction: `check` takes higher scores for more anomalous, and refuses maps that look
            inverted on the threshold part; `higher` takes them without a look, `lower` inverts.
        score_range: Lowest and highest score that the method can give; by default what is there.
        seed: Of the fit that the maps come from.
        missing: `nothing-found` counts a scan without a usable map as one in which nothing was
            found; `refuse` raises.
        resample: `average` over the cohort's voxels, or `linear` at their centres; `auto` takes
            `linear` for a folder of `jobs/predict.py`.
        by_affine: Take maps where their affines place them, also where that is not their scan's
            place.
        protocol: Gives all settings their defaults.
        settings: Fields of `EvaluateConfig` to change.

    Returns:
        What `evaluation/<cohort>.json` holds; `compared` in it lists scans without a usable map
        as `absent`.

    Raises:
        UadrayError: see `evaluation.maps.bring_maps` and `evaluation.job.evaluate`.
    """
    from uadray.evaluation.maps import bring_maps
    from uadray.evaluation.maps_settings import MapsConfig

    config = MapsConfig(
        pattern=pattern,
        direction=direction,  # type: ignore[arg-type]
        score_range=score_range,
        seed=seed,
        missing=missing,  # type: ignore[arg-type]
        resample=resample,  # type: ignore[arg-type]
        by_affine=by_affine,
    )
    opened = _cohort(cohort)
    run = bring_maps(str(maps), opened, str(out), name=name, config=config).run
    (record,) = evaluate(run, opened, protocol=protocol, **settings)
    return record


def open_model(url: Place, *, cohort: Place = "") -> Model:
    """Open a run folder or an exported model folder, to predict with it many times.

    Raises:
        UadrayError: see `prediction.model_folder.open_model`.
    """
    return _open_model(str(url), cohort=str(cohort))


@overload
def predict(
    model: Model | Run | Place,
    scans: Place,
    *,
    out: Place = "",
    brain: Place = "",
    age: float | None = None,
    viewer: bool = False,
    **config: Any,
) -> Prediction: ...


@overload
def predict(
    model: Model | Run | Place,
    scans: Sequence[Place],
    *,
    out: Place = "",
    brain: Place = "",
    age: float | None = None,
    viewer: bool = False,
    **config: Any,
) -> list[Prediction]: ...


def predict(
    model: Model | Run | Place,
    scans: Place | Sequence[Place],
    *,
    out: Place = "",
    brain: Place = "",
    age: float | None = None,
    viewer: bool = False,
    **config: Any,
) -> Prediction | list[Prediction]:
    """Find what is anomalous in a few scans, in this process and without Ray.

    For folders, and for more scans than fit in memory, use `predict_folder`.

    Args:
        model: What `fit` or `open_model` gave, or a run or model folder.
        scans: A NIfTI file, or several.
        out: Also write each scan's maps and `summary.json` into this folder.
        brain: Brain mask of the one scan.
        age: In years, of the one scan's person: `summary["standing"]` says where the person stands
            among healthy people of similar age.
        viewer: With `out`, also make a page to look at each scan.
        config: Fields of `PredictConfig`, such as `threshold=0.2` or `skull_strip="deepbet"`.

    Returns:
        For each scan the maps on its own grid as arrays, and the summary; a list where a list was
        given.

    Raises:
        UadrayError: see `prediction.scan.predict_scan`; a scan that cannot be used raises.
    """
    one = isinstance(scans, (str, Path))
    given = [str(scans)] if isinstance(scans, (str, Path)) else [str(scan) for scan in scans]
    opened, chosen = _model(model), PredictConfig(**config)
    check_age(age)
    items = find_items(
        given, opened.origin.modality, brain=str(brain), ignore_names=chosen.ignore_names, age=age
    ).items
    if one and len(items) > 1:
        raise PredictError(f"{given[0]} holds {len(items)} scans: use uadray.predict_folder")
    if not out:
        predictions = [predict_scan(opened, item.scan, chosen) for item in items]
        return predictions[0] if one else predictions
    place, predictions = files.normalise(str(out)), []
    with outputs.claimed(place, outputs.request_of(opened, chosen), items):
        for item in places.placed(place, items):
            predictions.append(predict_scan(opened, item.scan, chosen))
            outputs.write(place, item, predictions[-1], viewer=viewer)
    return predictions[0] if one else predictions


def predict_folder(
    model: Place,
    scans: Place | Sequence[Place],
    out: Place,
    *,
    workers: int | None = None,
    cohort: Place = "",
    brain: Place = "",
    age: float | None = None,
    covariates: Place = "",
    viewer: bool = True,
    device: Device = "auto",
    gpus: float = 0.0,
    **config: Any,
) -> Predicted:
    """Predict files and folders of scans, as `jobs/predict.py`: resumed, with a quarantine.

    Args:
        model: A run or model folder.
        scans: NIfTI files, tables or folders.
        out: Where the results go.
        workers: Scans at a time; 1 stays in this process, more use Ray; by default more than
            eight scans do, on all CPUs.
        cohort: Where the run's cohort lies, if it has moved.
        brain: Brain mask of the one scan.
        age: In years, of the one scan's person.
        covariates: Table of what is known of people besides, such as their ages.
        viewer: Make a page for each scan, and one for all.
        device: `cuda` computes on a GPU in each worker, `cpu` on none; `auto` as `gpus` says.
        gpus: GPUs of each worker.
        config: Fields of `PredictConfig`.

    Raises:
        UadrayError: see `prediction.folder.predict_items`.
    """
    from uadray.prediction.job import PredictJob

    given = [scans] if isinstance(scans, (str, Path)) else scans
    return PredictJob(
        model=str(model),
        scans=tuple(map(str, given)),
        out=str(out),
        workers=workers,
        cohort=str(cohort),
        brain=str(brain),
        age=age,
        covariates=str(covariates),
        viewer=viewer,
        device=device,
        gpus=gpus,
        config=PredictConfig(**config),
    ).run()


def export(run: Run | Place, out: Place, *, licence: str = "", onnx: bool | None = None) -> Model:
    """Write a run as a model folder that predicts without its cohort, as `jobs/export.py`.

    Args:
        run: A finished run.
        out: The model folder.
        licence: Of the weights, as an SPDX name.
        onnx: Whether to write the reconstruction as ONNX; None does where it can.

    Raises:
        UadrayError: see `prediction.model_folder.export_model`.
    """
    url = run.url if isinstance(run, Run) else str(run)
    return export_model(url, str(out), licence=licence, onnx=onnx)[0]


def _chosen(method: str | Experiment, fit: dict[str, Any]) -> Experiment:
    """An experiment, with fields of its fit changed."""
    chosen = experiment(method) if isinstance(method, str) else method
    if not isinstance(chosen, Experiment):
        raise ConfigError(f"method must be an experiment, or the name of one, was {method!r}")
    return replace(chosen, fit=fields.overlay(chosen.fit, fit, "fit"))


def _url(given: Place | Cohort) -> str:
    return given.url if isinstance(given, Cohort) else str(given)


def _cohort(given: Place | Cohort) -> Cohort:
    if not isinstance(given, (Cohort, str, Path)):
        raise ConfigError(f"expected a cohort, or where it lies, was {given!r}")
    return given if isinstance(given, Cohort) else open_cohort(str(given))


def _model(given: Model | Run | Place) -> Model:
    if isinstance(given, Model):
        return given
    return model_of_run(given) if isinstance(given, Run) else open_model(given)
