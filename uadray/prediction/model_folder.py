"""The model folder: all that prediction needs of a run, to be copied and shared as one.

`model.safetensors` (weights), `experiment.json` (what was fitted, and on what),
`preprocessing.json`, `thresholds.json`, `healthy.json`, `reference.json` (healthy people, without
names), `evaluations.json`, `MODEL_CARD.md`, and `reconstruction.onnx` where it could be made.
`manifest.json` holds the SHA-256 of each and is written last: a folder without it was cut short and
is refused.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

import uadray
from uadray import files
from uadray.config import Experiment, from_json, to_json
from uadray.errors import ConfigError, ModelError, PluginError
from uadray.lock import hold
from uadray.prediction.card import model_card
from uadray.prediction.healthy import Healthy
from uadray.prediction.model import (
    FORMAT,
    FrozenThreshold,
    Model,
    Origin,
    model_of_run,
    save_weights,
)
from uadray.prediction.onnx_export import has_onnx, reconstruction_onnx
from uadray.prediction.reference import Reference
from uadray.preparation.settings import PrepareConfig
from uadray.results import refuse_inside, refuse_place
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.runs.records import Broken, RunRecord, load_runs
from uadray.store import software_versions, storage_errors

MANIFEST = "manifest.json"
"""Written last; names all other files with their SHA-256."""

WEIGHTS, CARD, ONNX = "model.safetensors", "MODEL_CARD.md", "reconstruction.onnx"
"""Names of the files that are not JSON."""

_READ = ("experiment", "preprocessing", "thresholds", "healthy")
_REFERENCE = "reference"
_DOCUMENTS = (*_READ, _REFERENCE, "evaluations")
_NAMES = {MANIFEST, WEIGHTS, CARD, ONNX, *(f"{name}.json" for name in _DOCUMENTS)}


def open_model(url: str, *, cohort: str = "") -> Model:
    """Open a run folder or an exported model folder, on a local path or any fsspec URL.

    Args:
        url: The folder.
        cohort: Where the cohort of a run lies now, if it has moved since the fit and the run was
            never predicted with.

    Raises:
        ModelError: there is neither, or the model folder is damaged, half-written or of a version
            or fingerprint that does not fit.
        RunError: the run has not finished, or its cohort is gone.
    """
    url = files.normalise(url)
    try:
        names = files.list_names(url)
    except OSError as error:
        raise _unreadable(url, error) from None
    if MANIFEST in names or "experiment.json" in names:
        return read_model(url)
    if not Run.is_begun(url):
        raise ModelError(
            f"{url}: neither a run folder nor a model folder is there; give what jobs/train.py or "
            "jobs/export.py wrote"
        )
    return model_of_run(Run.open(url), cohort=cohort)


def export_model(
    run_url: str,
    out: str,
    *,
    cohort: str = "",
    licence: str = "",
    onnx: bool | None = None,
) -> tuple[Model, list[str]]:
    """Write a run as a model folder.

    Args:
        run_url: A finished run.
        out: The model folder, on a local path or any fsspec URL. One of the same model is written
            again; anything else there is refused.
        cohort: Where the run's cohort lies now, if it has moved.
        licence: Of the weights, as an SPDX name; the card says so where none is given.
        onnx: Whether to write the reconstruction as ONNX; None does where the method has one and
            the packages are there.

    Returns:
        The model, and what a reader must know of the export.

    Raises:
        ModelError: something else is at `out`.
        ConfigError: ONNX was asked for, and the method or the environment does not allow it.
        RunError: the run has not finished, or its cohort is gone.
        StoreError: `out` cannot be written.
    """
    model = model_of_run(Run.open(run_url), cohort=cohort)
    out = files.normalise(out)
    with storage_errors(out):
        _check_target(out, model)
    notes = list(model.notes)
    contents: dict[str, bytes] = {WEIGHTS: save_weights(model.detector)}
    network = None
    if onnx or (onnx is None and model.detector.has_reconstruction and has_onnx()):
        try:
            network = reconstruction_onnx(model.detector, model.shape)
        except ConfigError as error:
            if onnx:
                raise
            notes.append(f"no {ONNX}: {error}")
    elif onnx is None and model.detector.has_reconstruction:
        notes.append(f"no {ONNX}: it needs pip install -e '.[onnx]'")
    if network is not None:
        contents[ONNX] = network
    # An evaluation that cannot be read, or is of other weights, is no part of the model.
    broken: list[Broken] = []
    record = load_runs([run_url], broken)[0]
    notes += [f"left out: {one.error}" for one in broken]
    documents = _documents(model, record)
    contents |= {f"{name}.json": _encoded(value) for name, value in documents.items()}
    contents[CARD] = model_card(model, record, licence=licence, files=sorted(contents)).encode()
    with storage_errors(out), hold(out):
        _check_target(out, model)
        _write(out, contents, model)
    return read_model(out), notes


def _documents(model: Model, record: RunRecord) -> dict[str, Any]:
    return {
        "experiment": {
            "name": model.experiment.name,
            "experiment": to_json(model.experiment),
            "fingerprint": model.experiment.fingerprint,
            "shape": list(model.shape),
            "origin": to_json(model.origin),
            "versions": dict(model.versions),
            "summary": dict(record.summary),
        },
        "preprocessing": to_json(model.prepare),
        "thresholds": [one.to_json() for one in model.thresholds],
        "healthy": model.healthy.to_json(),
        _REFERENCE: [to_json(one) for one in model.references],
        "evaluations": [_without_places(one.values) for one in record.evaluations],
    }


def _without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without the paths of its author, and without its controls one by one."""
    cohorts = ("cohort", "healthy_cohort")
    public = {
        key: {k: v for k, v in value.items() if k != "url"} if key in cohorts and value else value
        for key, value in values.items()
    }
    if controls := public.get("controls"):
        cohort = {k: v for k, v in controls["cohort"].items() if k != "url"}
        kept = {k: v for k, v in controls.items() if k not in ("subjects", "people")}
        public["controls"] = kept | {"cohort": cohort}
    return public


def _encoded(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _check_target(out: str, model: Model) -> None:
    """Refuse to write over what is not this model."""
    refuse_place(out, ModelError)
    names = set(files.list_names(out))
    if foreign := sorted(n for n in names - _NAMES if not files.is_transient(n)):
        raise ModelError(f"{out} holds other files, first {foreign[0]}: choose another --out")
    if MANIFEST not in names:
        refuse_inside(out, ModelError)
        return
    held = _manifest(out)
    if held["identity"] != model.identity:
        raise ModelError(
            f"{out} holds another model ({held['name']}, {held['identity']}), not this one "
            f"({model.experiment.name}, {model.identity}): choose another --out"
        )


def _write(out: str, contents: Mapping[str, bytes], model: Model) -> None:
    files.remove(files.join(out, MANIFEST))
    for name in files.list_names(out):
        if name not in contents and name != files.LOCK:
            files.remove(files.join(out, name))
    for name, content in contents.items():
        files.write_bytes(files.join(out, name), content)
    manifest = {
        "format": FORMAT,
        "name": model.experiment.name,
        "identity": model.identity,
        "versions": software_versions(),
        "files": {name: hashlib.sha256(c).hexdigest() for name, c in sorted(contents.items())},
    }
    files.write_json(files.join(out, MANIFEST), manifest)


def read_model(url: str) -> Model:
    """Open a model folder.

    Raises:
        ModelError: it is half-written, damaged, or of a version or fingerprint that does not fit.
    """
    url = files.normalise(url)
    manifest = _manifest(url)
    names = [*_READ]
    if f"{_REFERENCE}.json" in manifest["files"]:  # not in models of earlier versions
        names.append(_REFERENCE)
    read = {name: _checked(url, f"{name}.json", manifest) for name in names}
    weights = _checked(url, WEIGHTS, manifest)
    made_by = str(manifest["versions"].get("uadray", "an unknown version"))
    with _naming(url, "experiment.json", made_by):
        held = files.parse_json(read["experiment"])
        z, y, x = shape = from_json(_Fitted, {k: held[k] for k in _FITTED}).shape
        experiment: Experiment = from_json(Experiment, held["experiment"])
        origin: Origin = from_json(Origin, held["origin"])
        detector = build_detector(experiment, (z, y, x))
    with _naming(url, WEIGHTS, made_by):
        detector.load_state_dict(load(weights))
    with _naming(url, "preprocessing.json", made_by):
        prepare: PrepareConfig = from_json(PrepareConfig, files.parse_json(read["preprocessing"]))
    with _naming(url, "healthy.json", made_by):
        healthy = Healthy.from_json(files.parse_json(read["healthy"]))
    with _naming(url, "thresholds.json", made_by):
        thresholds = tuple(map(FrozenThreshold.from_json, files.parse_json(read["thresholds"])))
        for threshold in thresholds:
            threshold.check_range(detector.score_range)
    references: tuple[Reference, ...] = ()
    if _REFERENCE in read:
        with _naming(url, f"{_REFERENCE}.json", made_by):
            people = files.parse_json(read[_REFERENCE])
            references = tuple(from_json(Reference, one) for one in people)
    model = Model(
        url=url,
        experiment=experiment,
        shape=shape,
        detector=detector.eval(),
        prepare=prepare,
        origin=origin,
        healthy=healthy,
        thresholds=thresholds,
        versions=held["versions"],
        references=references,
        notes=_version_note(made_by),
    )
    if experiment.fingerprint != held["fingerprint"] or model.identity != manifest["identity"]:
        raise ModelError(
            f"{url}: its settings and weights are {experiment.fingerprint} and {model.identity}, "
            f"its records say {held['fingerprint']} and {manifest['identity']}: uadray {made_by}, "
            f"which made it, has other settings than this one, {uadray.__version__}; install that "
            "version, or export the run again with this one"
        )
    return model


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """Fields of `experiment.json` that no other class checks."""

    shape: tuple[int, int, int]
    fingerprint: str
    versions: dict[str, str]


_FITTED = ("shape", "fingerprint", "versions")


@contextmanager
def _naming(url: str, name: str, made_by: str) -> Iterator[None]:
    """Turn what is wrong with one file of a model into an error that names it.

    Raises:
        ModelError: it does.
    """
    try:
        yield
    except PluginError as error:
        raise ModelError(f"{files.join(url, name)}: {error}") from None
    except (
        *(ConfigError, RuntimeError, SafetensorError, TypeError, ValueError),
        *(KeyError, IndexError, AttributeError),
    ) as error:
        what = f"lacks the field {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"{files.join(url, name)}: cannot build a model of it ({what}): uadray {made_by} wrote "
            f"it, this is {uadray.__version__}; copy the model again, install that version, or "
            "export the run again with this one"
        ) from None


def _unreadable(place: str, error: OSError) -> ModelError:
    return ModelError(
        f"{place}: cannot be read ({error.strerror or error}); see to its permissions and its disk"
    )


def _version_note(made_by: str) -> tuple[str, ...]:
    if made_by == uadray.__version__:
        return ()
    return (f"the model was exported by uadray {made_by}, this is {uadray.__version__}",)


_MANIFEST: dict[str, type] = {
    "format": int,
    "name": str,
    "identity": str,
    "versions": dict,
    "files": dict,
}
"""Fields of the manifest."""


def _manifest(url: str) -> dict[str, Any]:
    try:
        manifest = files.read_json(files.join(url, MANIFEST))
    except FileNotFoundError:
        raise ModelError(
            f"{url} has no {MANIFEST}: its export was cut short; run the same jobs/export.py again"
        ) from None
    except OSError as error:
        raise _unreadable(f"{url}/{MANIFEST}", error) from None
    except ValueError as error:
        raise ModelError(f"{url}/{MANIFEST} is damaged ({error}): export the run again") from None
    if not isinstance(manifest, dict) or not set(_MANIFEST) & set(manifest):
        raise ModelError(f"{url}/{MANIFEST} is not that of a uadray model: export the run again")
    for field, kind in _MANIFEST.items():
        if field not in manifest:
            raise ModelError(f"{url}/{MANIFEST} lacks the field {field}: export the run again")
        if type(manifest[field]) is not kind:
            raise ModelError(
                f"{url}/{MANIFEST}: {field} must be of type {kind.__name__}, was "
                f"{manifest[field]!r}: export the run again"
            )
    if manifest["format"] != FORMAT:
        made_by = manifest["versions"].get("uadray")
        raise ModelError(
            f"{url} is a model of format {manifest['format']}, made by uadray {made_by}; this one, "
            f"{uadray.__version__}, reads format {FORMAT}: install uadray {made_by}, or export the "
            "run again with this one"
        )
    return manifest


def _checked(url: str, name: str, manifest: Mapping[str, Any]) -> bytes:
    place = files.join(url, name)
    try:
        content = files.read_bytes(place)
    except FileNotFoundError:
        raise ModelError(f"{place} is missing: copy the model again, or export it again") from None
    except OSError as error:
        raise _unreadable(place, error) from None
    if hashlib.sha256(content).hexdigest() != manifest["files"].get(name):
        raise ModelError(
            f"{place} is not the file that was exported (its SHA-256 differs from the manifest): "
            "copy the model again, or export it again"
        )
    return content
