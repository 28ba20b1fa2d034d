"""The model card: what a model is, what it was made from, what it reached, and its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from uadray.config import flat, to_json
from uadray.html import NO_INTERVAL
from uadray.methods import num_parameters
from uadray.methods.ensemble import Ensemble
from uadray.metrics.postprocess import describe_findable, findable
from uadray.metrics.table import OWN
from uadray.prediction.model import Model
from uadray.runs.evaluations import Evaluation
from uadray.runs.records import RunRecord
from uadray.tables import escape, to_markdown


def model_card(model: Model, record: RunRecord, *, licence: str, files: Sequence[str]) -> str:
    """The card as Markdown, with a head that model hubs read.

    Args:
        model: What is exported.
        record: Its run, with the evaluations on record.
        licence: Of the weights; may be empty.
        files: Names of the folder's other files.
    """
    parts = [
        _head(licence),
        f"# {model.experiment.name}",
        _what(model),
        "## Use\n",
        _use(model),
        "## Data\n",
        _data(model),
        "## Results\n",
        _results(record),
        "## Limits\n",
        _limits(model, record),
        "## Licence\n",
        _licence(licence),
        "## Provenance\n",
        _provenance(model, record, files),
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _head(licence: str) -> str:
    lines = ["---", "library_name: uadray", "tags: [mri, brain, unsupervised-anomaly-detection]"]
    lines += [f"license: {licence.lower()}"] if licence else []
    return "\n".join([*lines, "---", ""])


def _what(model: Model) -> str:
    z, y, x = model.shape
    method, learned = model.experiment.method, num_parameters(model.detector)
    of_package = f" of {method.package}" if method.package else ""
    what = f"method `{method.type_name()}`{of_package}"
    if isinstance(method, Ensemble.Settings):
        names = " and ".join(dict.fromkeys(f"`{m.method.type_name()}`" for m in method.members))
        what = f"the {method.combine} of {len(method.members)} fits of {names}"
    return (
        f"Unsupervised anomaly detection in brain MRI ({model.origin.modality}), fitted with "
        f"uadray {model.versions.get('uadray', '')}: {what}, "
        f"{learned:,} learned numbers, volumes of {z} x {y} x {x} voxels (axial planes, rows, "
        "columns). It learned from healthy scans alone; what it cannot reconstruct or does not "
        "expect in a scan gets a high score. **Research software, not a medical device: it must "
        "not guide the care of a patient.**"
    )


def _use(model: Model) -> str:
    low, high = model.detector.score_range
    method = model.experiment.method
    needed = [method.package.how_to_get(type(method).__module__)] if method.package else []
    lines = [
        "```",
        *needed,
        "python jobs/predict.py THIS_FOLDER scan.nii.gz --out predicted",
        "```",
        "",
        f"Scores run from {low:g} to {high:g}. Thresholds that are frozen, each fitted before the "
        "test part of its cohort was opened:",
        "",
    ]
    if not model.thresholds:
        return "\n".join([*lines[:-2], "No threshold was fitted: maps alone, or `--threshold`."])
    rows = [
        [escape(t.name), f"{t.value:.5g}", t.rule, escape(t.fitted_on + _notes(t.notes))]
        for t in model.thresholds
    ]
    table = to_markdown(["name", "threshold", "rule", "fitted on"], rows, align="lrl")
    return "\n".join([*lines, table])


def _data(model: Model) -> str:
    origin, healthy, prepare = model.origin, model.healthy, model.prepare
    parts = ", ".join(f"{count} {split}" for split, count in sorted(origin.splits.items()))
    scanners = f"; {origin.num_scanners} scanners or sites" if origin.num_scanners else ""
    z, y, x = prepare.shape
    lines = [
        f"- Healthy cohort `{origin.name}`, fingerprint `{origin.fingerprint}`: {parts} scans, "
        f"{origin.modality}{scanners}.",
        f"- Preparation: {prepare.spacing_mm:g} mm isotropic, skull stripping "
        f"`{prepare.skull_strip}`, denoising {'on' if prepare.denoise else 'off'}, bias "
        f"correction {'on' if prepare.correct_bias else 'off'}, registration "
        f"`{prepare.register}`, percentiles {prepare.percentiles[0]:g} and "
        f"{prepare.percentiles[1]:g} inside the brain to 0 and 1, a box of "
        + " x ".join(f"{mm:g}" for mm in prepare.extent.mm)
        + f" mm, then {z} x {y} x {x} voxels. `preprocessing.json` has it all.",
        f"- Mean score inside the brain of {healthy.num_scored} healthy scans that were not fitted "
        f"on: {healthy.mean_score:.4f} (robust deviation {healthy.score_spread:.4f}).",
    ]
    if healthy.voxel_mm is not None:
        low, high = healthy.voxel_mm
        lines.append(f"- Voxels of the scans' files: {low:.2g} to {high:.2g} mm.")
    lines += [
        f"- To place a scan's scores: {one.describe()}, "
        + ("of whom nothing was learned" if one.source == "controls" else "of the validation part")
        + ", with ages, sexes and scores but without names in `reference.json`."
        for one in model.references
    ]
    lines += [f"- Noted of its scans: {note}." for note in origin.notes]
    return "\n".join(lines)


def _results(record: RunRecord) -> str:
    if not record.evaluations:
        return "The run was not evaluated on a cohort with lesions: nothing is known of its use."
    recorded = (kept for one in record.evaluations for kept in one.outside.values())
    outside = {one.appearance.key: one for one in recorded}
    shown = {metric.key: metric.head for metric in OWN if metric.shown}
    shown |= {k: escape(one.appearance.head) for k, one in outside.items() if one.appearance.shown}
    packages = [f"{shown[k]}: {escape(one.package)}" for k, one in outside.items() if k in shown]
    rows = [
        [escape(one.cohort + _notes(one.notes)), str(one.values["num_test"])]
        + [_figure(one, name) for name in shown]
        for one in record.evaluations
    ]
    return (
        "On test subjects that neither fit nor threshold had seen; 95 % intervals over people, "
        "which do not hold the choice of the seed. The upper bound takes its threshold from the "
        "test part itself.\n\n"
        + to_markdown(["cohort", "test subjects", *shown.values()], rows)
        + (f"\n\nMetrics of other packages: {'; '.join(packages)}." if packages else "")
    )


def _figure(evaluation: Evaluation, name: str) -> str:
    value, bounds = evaluation.metric(name), evaluation.interval(name)
    if value is None:
        return "not defined"
    text = f"{value:.3f}"
    if evaluation.has_too_few_people:
        return f"{text} ({NO_INTERVAL}: too few people)"
    return text if bounds is None else f"{text} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _limits(model: Model, record: RunRecord) -> str:
    lines = [
        f"- For {model.origin.modality} scans prepared as above. Other contrasts, scanners, ages "
        "or field strengths may look anomalous as such; prediction warns where a scan is unlike "
        f"the {model.healthy.num_scans} healthy ones, as far as their measures say.",
        "- A high score says that something is unexpected, not what it is. Healthy variants, "
        "surgery, motion and artefacts score as well, and lesions that look like healthy tissue "
        "do not.",
        f"- The finest that it sees are its own voxels; the range of its scores is from "
        f"{min(model.healthy.num_scored, 32)} healthy scans.",
        *_findable(model),
    ]
    if any("synthetic" in note for e in record.evaluations for note in e.notes):
        lines.append(
            "- Lesions of the evaluation are semi-synthetic: made, not found. Figures on real "
            "lesions may be far lower."
        )
    lines += [f"- Of the fit: {warning}." for warning in record.summary.get("warnings", [])]
    return "\n".join(lines)


def _findable(model: Model) -> list[str]:
    """What the median hides, for each size of its window that a threshold was fitted with."""
    z, y, x = (
        edge / voxels
        for edge, voxels in zip(model.prepare.extent.mm[::-1], model.shape, strict=True)
    )
    used = [one.config.postprocess.median_size for one in model.thresholds]
    sizes = sorted(set(used or [model.settings().postprocess.median_size]))
    sentences = [describe_findable(findable((z, y, x), size)) for size in sizes]
    return [f"- {one[0].upper()}{one[1:]}." for one in sentences]


def _licence(licence: str) -> str:
    stated = f"The weights: {licence}." if licence else "The weights: not stated by who exported."
    return (
        f"{stated} The code of uadray is Apache-2.0. The terms of the data that the model was "
        "fitted on may bind its use as well."
    )


def _provenance(model: Model, record: RunRecord, names: Sequence[str]) -> str:
    summary: Mapping[str, Any] = record.summary
    recorded = flat(to_json(model.experiment))
    members = recorded.pop("method.members", ())
    if members:
        recorded |= flat(members[0]["method"], "method.member")
    settings = "; ".join(f"{key} {value}" for key, value in recorded.items())
    fitted = summary.get("fit_seconds")
    lines = [
        f"- Experiment `{model.experiment.fingerprint}`, model `{model.identity}`.",
        f"- Settings: {settings}.",
        *_members(members),
        f"- Epochs {summary.get('epochs')}, kept {summary.get('best_epoch')}, healthy validation "
        f"reconstruction {summary.get('validation/reconstruction')}"
        + (f", fitted in {fitted:.0f} s." if fitted else "."),
        "- Fitted with " + ", ".join(f"{k} {v}" for k, v in model.versions.items()) + ".",
        f"- Files: {', '.join(f'`{name}`' for name in names)}; `manifest.json` has their SHA-256.",
    ]
    return "\n".join(lines)


def _members(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on the members of an ensemble; the settings are those of the first."""
    each = [
        f"seed {one['seed']}"
        + (f", fold {one['fold']} of {one['folds']}" if one["fold"] else "")
        + f" (weights `{one['weights'][:16]}`)"
        for one in members
    ]
    return [f"- Members: {'; '.join(each)}."] if each else []


def _notes(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
