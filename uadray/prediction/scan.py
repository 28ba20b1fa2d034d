"""One scan in a file to its anomaly map, on the scan's own grid.

The scan goes through the preparation that the model's cohort is recorded with, is scored and
post-processed by the functions of the evaluation, and the results go back the way it came.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import scipy.ndimage as ndi
import torch
from numpy.typing import NDArray

from uadray import files
from uadray.device import full_float32
from uadray.errors import PredictError, ScanError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.evaluation.scoring import clean, detect
from uadray.methods import Detector
from uadray.methods.base import Detection
from uadray.methods.ensemble import combine_of, combined, members_of
from uadray.metrics.components import drop_components, neighbours
from uadray.metrics.members import combine_levels, spread_over_members
from uadray.metrics.postprocess import dequantise, findable
from uadray.prediction.healthy import mean_inside
from uadray.prediction.inputs import check_modality, named_modalities
from uadray.prediction.model import FrozenThreshold, Model
from uadray.prediction.reference import Reference, Way, choose, place, scores_of_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.covariates import age_of, doubt_of_age
from uadray.preparation.geometry import BRAIN_THRESHOLD, Volume, to_scanner, voxel_ml, voxel_sizes
from uadray.preparation.identity import digest_of, look_at
from uadray.preparation.layouts import PHANTOM_SCHEME, Scan
from uadray.preparation.layouts.scans import stem
from uadray.preparation.masks import read_share
from uadray.preparation.nifti import RawImage
from uadray.preparation.settings import DOUBT
from uadray.preparation.steps import PreparedVolume, prepare_scan
from uadray.store import software_versions


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of a scan's file."""

    affine: NDArray[np.float64]
    """(4, 4), from a voxel's index to the scanner's millimetres."""
    shape: tuple[int, int, int]
    """In the order of the file's axes."""
    placing: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the scan's header that lay the results on it for every reader, see `RawImage`;
    empty where there is none: then the affine does."""

    @property
    def axial_axis(self) -> int:
        """The axis of the file that runs along inferior and superior."""
        return int(np.abs(self.affine[2, :3] / voxel_sizes(self.affine)).argmax())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one scan, on the grid of its file."""

    anomaly: NDArray[np.float32]
    """What the evaluation compares with its threshold, in the method's units: post-processed
    scores, without the components that it drops, brought to the file's grid linearly. In the order
    of the file's axes; 0 outside the brain."""
    proposal: NDArray[np.bool_] | None
    """Where `anomaly` is at or above the threshold; None where none was asked for."""
    reconstruction: NDArray[np.float32] | None
    """The healthy version in [0, 1], as the detector works; None where the method has none."""
    spread: NDArray[np.float32] | None
    """Standard deviation of the post-processed scores over the members of an ensemble, in the
    method's units, on the file's grid; 0 outside the brain. None for a single fit."""
    brain: NDArray[np.bool_]
    """What was taken for brain."""
    truth: NDArray[np.bool_] | None
    """The lesion mask that came with the scan; None where none did."""
    scan: NDArray[np.float32]
    """The scan's own intensities."""
    grid: Grid
    """Where it lies."""
    prepared: PreparedVolume
    """The scan on the model's grid."""
    levels: NDArray[np.uint16]
    """(Z, Y, X) post-processed scores on the model's grid, as levels, all components in them."""
    summary: dict[str, Any]
    """All that is said of it, as JSON values."""
    reference: Reference | None = None
    """Healthy people whom its scores are compared with; None where the model knows none."""


def choose_threshold(model: Model, config: PredictConfig) -> FrozenThreshold | None:
    """The threshold that a call proposes with; None for maps alone.

    Raises:
        NoThresholdError: see `Model.choose_threshold`.
    """
    if config.map_only:
        return None
    return model.choose_threshold(config.threshold_from, config.threshold)


def way_of_scores(model: Model, config: PredictConfig) -> Way:
    """How a call makes the scores of people, see `choose_threshold`."""
    threshold = choose_threshold(model, config)
    return Way(
        config=threshold.config if threshold else model.settings(config.threshold_from),
        shape=model.shape,
        level=None if threshold is None else threshold.level,
    )


def predict_scan(
    model: Model,
    scan: Scan,
    config: PredictConfig | None = None,
    *,
    device: torch.device | None = None,
) -> Prediction:
    """Find what is anomalous in one scan.

    Args:
        model: From `open_model`.
        scan: Its files.
        config: Threshold, and where the preparation differs from the cohort's.
        device: Where the model's detector is and computes; the CPU by default.

    Raises:
        ScanError: the scan cannot be used: another modality by its name, no brain, damaged.
        NoThresholdError: there is none to propose with.
    """
    config, device = config or PredictConfig(), device or torch.device("cpu")
    threshold = choose_threshold(model, config)
    if scan.image.startswith(PHANTOM_SCHEME):
        raise PredictError(f"{scan.image}: a phantom is in no file; write it to one to predict it")
    if not config.ignore_names:
        check_modality(scan, model.origin.modality)
    source = look_at(scan)
    with files.digests_of_reads() as read:
        prediction = _predict(model, scan, config, threshold, device)
    known = {"source_digest": digest_of(scan, read), "source_stamp": source.stamp}
    return replace(prediction, summary={**prediction.summary, **known, "reading": reading(scan)})


def reading(scan: Scan) -> dict[str, Any]:
    """What decides a scan's results besides the content of its files, as a JSON value."""
    age = age_of(scan)
    return {
        "modality": scan.modality,
        "orientation": scan.orientation,
        "lesion_labels": list(scan.lesion_labels),
    } | ({} if age is None else {"age": age})


def _predict(
    model: Model,
    scan: Scan,
    config: PredictConfig,
    threshold: FrozenThreshold | None,
    device: torch.device,
) -> Prediction:
    clock = _Clock()
    way = _Way(clock)
    # What is known of the lesion is looked at, but decides nothing.
    bare = replace(scan, lesion="", more_lesions=(), lesion_labels=(), synthetic_lesion="")
    prepared = prepare_scan(bare, config.prepare(model.prepare), way)
    clock.mark("prepare")
    of_people = way_of_scores(model, config)
    settings = of_people.config
    scored = _score(model, prepared, settings, device, clock, scan.id)
    grid = Grid(affine=way.affine, shape=way.shape, placing=way.placing)

    def to_scan(array: NDArray[Any]) -> NDArray[np.float32]:
        return to_scanner(array, prepared.affine, grid.affine, grid.shape)

    brain = to_scanner(way.brain.T, way.brain_affine, grid.affine, grid.shape) >= BRAIN_THRESHOLD
    scores = to_scan(dequantise(scored.opened, model.detector.score_range))
    anomaly = np.where(brain, scores, np.float32(0))
    # What the evaluation counts as proposed, on the model's own grid, and what the file holds.
    proposal, voxels = None, None
    if threshold is not None:
        voxels = int((scored.opened >= threshold.level).sum())
        anomaly = clear_of(anomaly, threshold.value)
        proposal = brain & (anomaly >= threshold.value)
    reconstruction, spread = None, None
    if scored.reconstruction is not None:
        reconstruction = to_scan(scored.reconstruction * prepared.brain).clip(0, 1)
    if scored.spread is not None:
        spread = np.where(brain, to_scan(scored.spread), np.float32(0))
    truth, unusable = _truth(scan, way)
    clock.mark("map_back")
    scores_of_person = scores_of_scan(
        scored.levels, prepared.brain, model.detector.score_range, settings
    )
    if voxels is not None:
        scores_of_person["volume"] = voxels * voxel_ml(prepared.affine)
    reference = choose(model.references, of_people)
    standing = place(scores_of_person, age_of(scan), reference, of_people)
    if doubt := doubt_of_age(scan):
        standing["remarks"].insert(0, doubt)
    return Prediction(
        anomaly=anomaly,
        proposal=proposal,
        reconstruction=reconstruction,
        spread=spread,
        brain=brain,
        truth=truth,
        scan=way.image,
        grid=grid,
        prepared=prepared,
        levels=scored.levels,
        summary={
            "name": scan.id,
            "source": scan.image,
            **_figures(anomaly, proposal, brain, grid),
            **({} if spread is None else {"spread": _spread_figures(spread, anomaly, brain)}),
            "truth": _overlap(proposal, truth, grid),
            "score_range": list(model.detector.score_range),
            "mean_score": scored.mean_score,
            "standing": standing,
            "threshold": _threshold_facts(threshold),
            "model_grid": {
                "shape": list(prepared.brain.shape),
                "affine": prepared.affine.tolist(),
                "proposed_voxels": voxels,
                "proposed_ml": None if voxels is None else voxels * voxel_ml(prepared.affine),
                **findable(
                    voxel_sizes(prepared.affine)[::-1].tolist(), settings.postprocess.median_size
                ),
            },
            "warnings": [
                *_unlike_the_fit(model, scan, config, prepared),
                *_warnings(model, prepared, grid, scored.mean_score),
                *unusable,
            ],
            "notes": [n for n in prepared.notes.split("; ") if n and not n.startswith(DOUBT)],
            "run": {
                "name": model.experiment.name,
                "fingerprint": model.experiment.fingerprint,
                "cohort": model.origin.fingerprint,
                "identity": model.identity,
            },
            "versions": software_versions(),
            "seconds": clock.seconds,
        },
        reference=reference,
    )


class _Clock:
    """Seconds by step, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        """All since the last mark belongs to this step."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class _Way:
    """Watches a scan's preparation: the grid that it came on, and its brain before the crop."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def __call__(self, name: str, volume: Volume) -> None:
        self._clock.mark(name)
        if name == "read":
            x, y, z = volume.image.shape
            self.image, self.affine, self.shape = volume.image, volume.affine, (x, y, z)
            self.placing = volume.placing
            # What records no placement lies on another grid by its voxels alone.
            codes = [volume.placing.get(name, 0) for name in ("sform_code", "qform_code")]
            self.oriented = max(codes) > 0
        elif name == "strip":
            self.brain, self.brain_affine = volume.brain, volume.scanner_affine


def _truth(scan: Scan, way: _Way) -> tuple[NDArray[np.bool_] | None, list[str]]:
    """What any mask that came with the scan calls lesion, on its grid; or why none can be used."""
    paths = [path for path in (scan.lesion, *scan.more_lesions) if path]
    if not paths:
        return None, []
    raw = RawImage(voxels=way.image, affine=way.affine, oriented=way.oriented, notes=())
    try:
        shares = [
            read_share(path, raw, scan.image, scan.lesion_labels, least=BRAIN_THRESHOLD)[0]
            for path in paths
        ]
    except ScanError as error:
        return None, [f"the lesion mask that came with it cannot be used: {error}"]
    return np.asarray(np.max(shares, axis=0) > BRAIN_THRESHOLD), []


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """What the detector says of a prepared scan, on its grid."""

    levels: NDArray[np.uint16]
    opened: NDArray[np.uint16]
    reconstruction: NDArray[np.float32] | None
    mean_score: float
    spread: NDArray[np.float32] | None
    """Over the members of an ensemble, in the method's units."""


def _score(
    model: Model,
    prepared: PreparedVolume,
    settings: EvaluateConfig,
    device: torch.device,
    clock: _Clock,
    name: str,
) -> _Scored:
    """Score and post-process as the evaluation does."""
    # The store keeps float16, and so the detector was fitted and evaluated on it.
    image = torch.from_numpy(prepared.image.astype(np.float16).astype(np.float32)[None])
    brain = prepared.brain
    detector, members, cut = model.detector, members_of(model.detector), settings.cut
    found = [detect(one, image, brain[None], device, settings.residual) for one in members]
    raw = [one.scores[0].double().cpu() for one in found]
    outputs = [
        _healthy_version(member, one, image, brain, device)
        for member, one in zip(members, found, strict=True)
    ]
    known = [one for one in outputs if one is not None]
    reconstruction = combined(detector, known).numpy() if len(known) == len(members) else None
    # The healthy range is one of absolute residuals.
    signed = settings.residual != "absolute" and reconstruction is not None
    whole = [(image[0] - one).abs() for one in known] if signed else raw
    clock.mark("score")
    cleaned = [
        clean(one.numpy(), image[0].numpy(), brain, detector.score_range, settings, name)
        for one in raw
    ]
    levels = np.zeros(brain.shape, np.uint16)
    levels[cut] = combine_levels(cleaned, combine_of(detector))
    opened = np.zeros(brain.shape, np.uint16)
    opened[cut] = drop_components(levels[cut], settings.components)
    spread, over = None, spread_over_members(cleaned, detector.score_range)
    if over is not None:
        spread = np.zeros(brain.shape, np.float32)
        spread[cut] = over
    clock.mark("postprocess")
    return _Scored(
        levels=levels,
        opened=opened,
        reconstruction=reconstruction,
        mean_score=mean_inside(combined(detector, whole).numpy(), brain),
        spread=spread,
    )


def _healthy_version(
    detector: Detector,
    found: Detection,
    image: torch.Tensor,
    brain: NDArray[np.bool_],
    device: torch.device,
) -> torch.Tensor | None:
    """(Z, Y, X) on the CPU, as the map was made from it, or made for it; None without any."""
    output = found.reconstruction
    if output is None and detector.has_reconstruction:
        with torch.inference_mode(), full_float32():
            inside = torch.from_numpy(brain[None]).to(device)
            output = detector.reconstruct_within(image[:, None].to(device), inside)
    return None if output is None else output[0, 0].float().cpu()


def clear_of(scores: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Scores of which none is within rounding of a threshold and yet below it.

    What equals the threshold but for the last bits of a float32 becomes the next float32 above it,
    so that comparing the file's values gives the same voxels in single and in double precision.

    Args:
        scores: Any shape.
        threshold: In the same units.
    """
    above = np.float32(threshold)
    if float(above) < threshold:
        above = np.nextafter(above, np.float32(np.inf))
    near = np.abs(scores - above) <= 4 * np.spacing(above)
    return np.where(near, above, scores)


def _figures(
    anomaly: NDArray[np.float32],
    proposal: NDArray[np.bool_] | None,
    brain: NDArray[np.bool_],
    grid: Grid,
) -> dict[str, Any]:
    """Volumes, components and slices, all of what is in the files."""
    axis, ml = grid.axial_axis, voxel_ml(grid.affine)
    by_slice = anomaly.max(axis=tuple(k for k in range(3) if k != axis))
    top = int(by_slice.argmax())
    figures: dict[str, Any] = {
        "shape": list(grid.shape),
        "voxel_mm": [round(float(edge), 4) for edge in voxel_sizes(grid.affine)],
        "axial_axis": axis,
        "top_slice": top,
        "top_score": float(by_slice[top]),
        "slice_scores": [round(float(score), 6) for score in by_slice],
        "brain_ml": float(brain.sum()) * ml,
        "proposal": None,
    }
    if proposal is not None:
        labels, count = ndi.label(proposal, neighbours(26))
        sizes = np.bincount(labels.ravel())[1:]
        figures["proposal"] = {
            "volume_ml": float(sizes.sum()) * ml,
            "components": int(count),
            "largest_ml": float(sizes.max(initial=0)) * ml,
        }
    return figures


def _spread_figures(
    spread: NDArray[np.float32], anomaly: NDArray[np.float32], brain: NDArray[np.bool_]
) -> dict[str, float]:
    """How far members are apart: over the brain, and where the score is highest."""
    return {
        "mean": float(spread[brain].mean()) if brain.any() else 0.0,
        "at_top_score": float(spread.flat[int(anomaly.argmax())]),
    }


def _overlap(
    proposal: NDArray[np.bool_] | None, truth: NDArray[np.bool_] | None, grid: Grid
) -> dict[str, Any] | None:
    """The known lesion's volume, and the proposal's Dice with it."""
    if truth is None:
        return None
    dice = None
    if proposal is not None and (total := int(proposal.sum()) + int(truth.sum())):
        dice = 2 * int((proposal & truth).sum()) / total
    return {"volume_ml": float(truth.sum()) * voxel_ml(grid.affine), "dice": dice}


def _threshold_facts(threshold: FrozenThreshold | None) -> dict[str, Any] | None:
    """A threshold in the summary's words."""
    if threshold is None:
        return None
    record = threshold.to_json()
    return {key: record[key] for key in record if key != "config"} | {
        "protocol": threshold.config.protocol,
        "postprocess": record["config"]["postprocess"],
        "components": record["config"]["components"],
    }


def _warnings(model: Model, prepared: PreparedVolume, grid: Grid, mean_score: float) -> list[str]:
    """What a reader of the map must know: doubts of the reading, and how the scan is unlike."""
    doubts = [n.removeprefix(DOUBT) for n in prepared.notes.split("; ") if n.startswith(DOUBT)]
    unlike = model.healthy.doubts(
        prepared.image,
        prepared.brain,
        spacing_mm=voxel_sizes(prepared.affine)[::-1].tolist(),
        scan_mm=voxel_sizes(grid.affine).tolist(),
        mean_score=mean_score,
    )
    return [*model.notes, *doubts, *unlike]


def _unlike_the_fit(
    model: Model, scan: Scan, config: PredictConfig, prepared: PreparedVolume
) -> list[str]:
    """Where model and scan do not go together although somebody insisted, or do all too well."""
    doubts = []
    if prepared.image_digest in model.origin.image_digests:
        doubts.append(
            "the model was fitted on this very scan: what it finds here says nothing about scans "
            "that it has not seen"
        )
    names, known = named_modalities(stem(scan.image)), model.origin.modality.split(", ")
    if names and not names & set(known):
        doubts.append(
            f"its file is named as {' or '.join(sorted(names))}, but the model was fitted on "
            f"{model.origin.modality}"
        )
    used = config.prepare(model.prepare)
    for one in fields(used):
        value, recorded = getattr(used, one.name), getattr(model.prepare, one.name)
        if value != recorded:
            doubts.append(
                f"prepared otherwise than the scans that the model was fitted on: {one.name} is "
                f"{value}, there {recorded}"
            )
    return doubts
