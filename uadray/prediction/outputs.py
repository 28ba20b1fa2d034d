"""What prediction leaves of each scan: NIfTI files on the scan's grid, and a summary, last of all.

A scan is done whose summary is there and names this very scan: its path, the content of its files
by their digest, and the settings of its own. Those that all scans share stand in the folder's
marker. Names follow BIDS derivatives where the scan's do.
"""

import gzip
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

import uadray
from uadray import attempts, files
from uadray.config import to_json
from uadray.errors import PredictError
from uadray.lock import hold
from uadray.prediction import pages
from uadray.prediction.inputs import Item
from uadray.prediction.model import Model
from uadray.prediction.reference import choose
from uadray.prediction.scan import Grid, Prediction, choose_threshold, reading, way_of_scores
from uadray.prediction.settings import PredictConfig
from uadray.preparation.identity import is_unchanged, look_at, same_place
from uadray.results import PREDICTIONS, are_predictions, refuse_inside

MARKER = PREDICTIONS
"""In the output folder: whose predictions it holds, under which settings."""

FORMAT = 1
"""Version of the output folder."""

TABLE, QUARANTINE = "predictions.tsv", "quarantine.jsonl"
"""Names of the tables of all scans that are done, and of those that could not be used."""

COMPRESSION = 1
"""Of gzip: maps are mostly zeros, and higher levels take several times as long for a tenth."""

_PLAIN = {
    "anomaly": "anomaly.nii.gz",
    "proposal": "proposal.nii.gz",
    "reconstruction": "reconstruction.nii.gz",
    "spread": "spread.nii.gz",
    "brain_mask": "brain_mask.nii.gz",
}
_BIDS = {
    "anomaly": "desc-anomaly_probseg.nii.gz",
    "proposal": "desc-anomaly_mask.nii.gz",
    "reconstruction": "desc-healthy_{modality}.nii.gz",
    "spread": "desc-spread_probseg.nii.gz",
    "brain_mask": "desc-brain_mask.nii.gz",
}
_IGNORED = (MARKER, TABLE, QUARANTINE, "*_summary.json", "*.html", "*.png")


def file_names(item: Item) -> dict[str, str]:
    """Kind of result -> name of its file, in the scan's folder."""
    if not item.bids:
        return dict(_PLAIN)
    modality = item.scan.modality
    return {kind: f"{item.bids}_{name.format(modality=modality)}" for kind, name in _BIDS.items()}


def encode(array: NDArray[Any], grid: Grid, description: str) -> bytes:
    """An array on a scan's grid as a packed NIfTI file, the same bytes every time.

    Args:
        array: In the order of the file's axes; bool becomes uint8.
        grid: Of the scan, whose header's placement it gets.
        description: For the header, at most 79 letters.
    """
    array = array.astype(np.uint8) if array.dtype == bool else array
    image = nib.Nifti1Image(array, grid.affine)
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    content = image.to_bytes()
    if grid.placing:
        # Into the bytes, since nibabel mends some of these fields where it writes them.
        header = nib.Nifti1Header(content[:348], check=False)
        for name, value in grid.placing.items():
            if name == "pixdim":
                header[name][:4] = value
            else:
                header[name] = value
        content = header.binaryblock + content[348:]
    return gzip.compress(content, COMPRESSION, mtime=0)


def request_of(model: Model, config: PredictConfig) -> dict[str, Any]:
    """All that decides the results of a scan besides its files."""
    threshold, way = choose_threshold(model, config), way_of_scores(model, config)
    settings, reference = way.config, choose(model.references, way)
    return {
        "run": model.experiment.name,
        "identity": model.identity,
        "threshold": None if threshold is None else threshold.value,
        "threshold_fingerprint": None if threshold is None else threshold.fingerprint,
        "reference": None if reference is None else reference.digest,
        "prepare": to_json(config.prepare(model.prepare)),
        "scoring": {
            key: to_json(getattr(settings, key))
            for key in ("protocol", "residual", "postprocess", "components")
        },
    }


@contextmanager
def claimed(out: str, request: Mapping[str, Any], items: Sequence[Item]) -> Iterator[None]:
    """Begin an output folder, or continue one of the same request, and keep other jobs off it.

    Args:
        out: The folder.
        request: From `request_of`.
        items: The scans that are to be predicted into it.

    Raises:
        PredictError: it holds predictions of another run or under other settings, or something
            else, it lies in a run, model or cohort, or it cannot be written.
        LockedError: another job writes it.
    """
    if not are_predictions(out):
        refuse_inside(out, PredictError)
    with ExitStack() as held:
        try:
            held.enter_context(hold(out))
        except OSError as error:
            raise unwritable(out, error) from None
        _begin(out, request, items)
        yield


def _begin(out: str, request: Mapping[str, Any], items: Sequence[Item]) -> None:
    try:
        names = [name for name in files.list_names(out) if not files.is_transient(name)]
        inside = next((i for i in items if i.scan.image.startswith(files.join(out, ""))), None)
        if MARKER in names:
            _check_marker(out, request)
            if inside:
                raise PredictError(
                    f"{inside.scan.image} lies in {out}, where predictions are: results are no "
                    "scans; give scans that lie outside of --out"
                )
        elif names:
            what = f"holds scans, such as {inside.scan.image}" if inside else f"first {names[0]}"
            raise PredictError(
                f"{out} is not empty and holds no predictions, {what}: choose another --out, such "
                f"as {files.join(out, 'predicted')}"
            )
        marker = {"format": FORMAT, "request": dict(request), "uadray": uadray.__version__}
        files.write_json(files.join(out, MARKER), marker)
        if any(item.bids for item in items):
            files.write_json(files.join(out, "dataset_description.json"), _description(request))
            files.write_bytes(files.join(out, ".bidsignore"), "\n".join(_IGNORED).encode() + b"\n")
    except OSError as error:
        raise unwritable(out, error) from None


def unwritable(out: str, error: OSError) -> PredictError:
    """The error for a target that cannot be written."""
    return PredictError(
        f"{out}: results cannot be written there ({error.strerror or error}): see to its "
        "permissions and its disk, or choose another --out; what is done is kept"
    )


def _check_marker(out: str, request: Mapping[str, Any]) -> None:
    try:
        held = files.read_json(files.join(out, MARKER))["request"]
        name, identity = held["run"], held["identity"]
    except (ValueError, KeyError, TypeError) as error:
        raise PredictError(
            f"{out}/{MARKER} is damaged ({error}), so that it is not known whose predictions these "
            "are: choose another --out"
        ) from None
    if identity != request["identity"]:
        raise PredictError(
            f"{out} holds predictions of another run ({name}, {identity}), not of this one "
            f"({request['run']}, {request['identity']}): choose another --out"
        )
    # What an earlier version did not record is no difference: its results have no digest either.
    if changed := sorted(key for key in request if key in held and held[key] != request[key]):
        differences = "; ".join(
            f"{key}: {held.get(key)} there, {request[key]} here" for key in changed
        )
        raise PredictError(
            f"{out} holds predictions of this run under other settings ({differences}): choose "
            "another --out"
        )


def _description(request: Mapping[str, Any]) -> dict[str, Any]:
    """What BIDS wants at the root of derivatives."""
    return {
        "Name": f"Anomaly maps of {request['run']}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "uadray",
                "Version": uadray.__version__,
                "Description": f"{request['run']}, model {request['identity']}",
            }
        ],
    }


def write(out: str, item: Item, prediction: Prediction, *, viewer: bool = False) -> dict[str, Any]:
    """Write one scan's results, the summary last.

    Nobody may take the maps for another content of the scan's files than they are of: summary and
    page of an earlier one go first, and the new ones come last.

    Args:
        out: The output folder.
        item: The scan.
        prediction: What was found in it.
        viewer: Whether to make its page.

    Returns:
        The summary, with the names of the files.

    Raises:
        OSError: the target cannot be written.
    """
    started = time.perf_counter()
    folder, names = files.join(out, item.folder), file_names(item)
    arrays = {
        "anomaly": prediction.anomaly.astype(np.float32),
        "proposal": prediction.proposal,
        "reconstruction": prediction.reconstruction,
        "spread": prediction.spread,
        "brain_mask": prediction.brain,
    }
    name = prediction.summary["run"]["name"]
    written: dict[str, str] = {}
    for old in (item.summary, f"{item.folder}/{pages.page_name(item)}"):
        files.remove_file(files.join(out, old))
    for kind, array in arrays.items():
        if array is not None:
            content = encode(array, prediction.grid, f"uadray {name} {kind}")
            files.write_bytes(files.join(folder, names[kind]), content)
            written[kind] = names[kind]
    summary = {
        "status": "done",
        **prediction.summary,
        "name": item.name,
        "folder": item.folder,
        "files": {**written, "scan": item.scan.image},
        "page": None,
    }
    if viewer:
        summary |= pages.write_page(out, item, prediction, summary)
    summary["seconds"] = {
        **{k: round(v, 4) for k, v in summary["seconds"].items()},
        "write": round(time.perf_counter() - started, 4),
    }
    files.write_json(files.join(out, item.summary), summary)
    return summary


def done(out: str, item: Item) -> dict[str, Any] | None:
    """The summary of a scan that is done, if it is of this scan with the content that it has now.

    Its source is the one asked for, its files hold what they held, by digest, it was read in the
    same way, and all results are there.
    """
    scan = item.scan
    try:
        summary: dict[str, Any] = files.read_json(files.join(out, item.summary))
        if (
            summary["status"] != "done"
            or not same_place(summary["source"], scan.image)
            or summary["source_digest"] == ""
            or summary["reading"] != reading(scan)
        ):
            return None
        names = {name for kind, name in summary["files"].items() if kind != "scan"}
        if not names <= set(files.list_names(files.join(out, item.folder))):
            return None
        digest, stamp = summary["source_digest"], summary["source_stamp"]
        return summary if is_unchanged(scan, look_at(scan), digest=digest, stamp=stamp) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None


def begin(out: str, item: Item) -> int:
    """Note that a scan was started; returns how often a process died over it before."""
    return attempts.begin(_attempt(out, item))


def end(out: str, item: Item) -> None:
    """Note that a scan has ended, well or not."""
    attempts.end(_attempt(out, item))


def _attempt(out: str, item: Item) -> str:
    which = f"{item.summary}\0{item.scan.image}".encode(errors="surrogatepass")
    digest = hashlib.sha256(which).hexdigest()[:16]
    return files.join(out, ".begun", digest)


def place_of(summary: Mapping[str, Any]) -> str:
    """Where a summary lies, relative to the output folder."""
    anomaly = str(summary["files"]["anomaly"])
    stem = anomaly.removesuffix(_PLAIN["anomaly"]).removesuffix(_BIDS["anomaly"])
    return f"{summary['folder']}/{stem}{'desc-anomaly_' if stem else ''}summary.json"
