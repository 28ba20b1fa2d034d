"""What prediction leaves of each scan: NIfTI files on the scan's grid, and a summary, last of all.

A scan whose summary is there is done. Names follow BIDS derivatives where the scan's do.
"""

import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

import uadray
from uadray import files
from uadray.config import to_json
from uadray.errors import PredictError
from uadray.predict import pages
from uadray.predict.inputs import Item
from uadray.predict.scan import Grid, PredictConfig, Prediction, choose_threshold
from uadray.prepare.layouts import LeftOut
from uadray.prepare.layouts.listing import printable
from uadray.share.model import Model

MARKER = "predict.json"
"""In the output folder: whose predictions it holds, under which settings."""

FORMAT = 1
"""Version of the output folder."""

COMPRESSION = 1
"""Of gzip: maps are mostly zeros, and higher levels take several times as long for a tenth."""

_PLAIN = {
    "anomaly": "anomaly.nii.gz",
    "proposal": "proposal.nii.gz",
    "reconstruction": "reconstruction.nii.gz",
    "brain_mask": "brain_mask.nii.gz",
}
_BIDS = {
    "anomaly": "desc-anomaly_probseg.nii.gz",
    "proposal": "desc-anomaly_mask.nii.gz",
    "reconstruction": "desc-healthy_{modality}.nii.gz",
    "brain_mask": "desc-brain_mask.nii.gz",
}
_IGNORED = (MARKER, "predictions.tsv", "quarantine.jsonl", "*_summary.json", "*.html", "*.png")


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
    threshold = choose_threshold(model, config)
    return {
        "run": model.experiment.name,
        "identity": model.identity,
        "threshold": None if threshold is None else threshold.value,
        "threshold_fingerprint": None if threshold is None else threshold.fingerprint,
        "prepare": to_json(config.prepare(model.prepare)),
    }


def claim(out: str, request: Mapping[str, Any], *, bids: bool) -> None:
    """Begin an output folder, or take up one of the same request.

    Raises:
        PredictError: it holds predictions of another run or under other settings, or something
            else, or it cannot be written.
    """
    try:
        names = files.list_names(out)
        if MARKER in names:
            _check_marker(out, request)
        elif names:
            raise PredictError(
                f"{out} is not empty and holds no predictions, first {names[0]}: choose another "
                "--out"
            )
        marker = {"format": FORMAT, "request": dict(request), "uadray": uadray.__version__}
        files.write_json(files.join(out, MARKER), marker)
        if bids:
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
            f"{out}/{MARKER} is damaged ({error}): choose another --out, or remove the folder"
        ) from None
    if identity != request["identity"]:
        raise PredictError(
            f"{out} holds predictions of another run ({name}, {identity}), not of this one "
            f"({request['run']}, {request['identity']}): choose another --out"
        )
    if changed := sorted(key for key in request if held.get(key) != request[key]):
        shown = "; ".join(f"{key}: {held.get(key)} there, {request[key]} here" for key in changed)
        raise PredictError(
            f"{out} holds predictions of this run under other settings ({shown}): choose another "
            "--out"
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
        "brain_mask": prediction.brain,
    }
    name = prediction.summary["run"]["name"]
    written: dict[str, str] = {}
    for kind, array in arrays.items():
        if array is not None:
            content = encode(array, prediction.grid, f"uadray {name} {kind}")
            files.write_bytes(files.join(folder, names[kind]), content)
            written[kind] = names[kind]
    summary = {
        "status": "done",
        **prediction.summary,
        "name": item.name,
        "files": {**written, "scan": item.scan.image},
        "source_bytes": source_bytes(item),
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
    """The summary of a scan that is done and whose file is still of the same size, or None."""
    try:
        summary: dict[str, Any] = files.read_json(files.join(out, item.summary))
        if summary["status"] == "done" and summary["source_bytes"] == source_bytes(item):
            return summary
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    return None


def source_bytes(item: Item) -> int:
    """Size of a scan's files together; what is absent counts as nothing."""
    total = 0
    for path in (item.scan.image, item.scan.brain):
        if path:
            fs, inner = files.located(path)
            with_size = fs.exists(inner)
            total += int(fs.size(inner) or 0) if with_size else 0
    return total


def begin(out: str, item: Item) -> int:
    """Note that a scan is begun; returns how often a process died over it before."""
    url = _attempt(out, item)
    deaths = int(files.read_json(url)["begun"]) if files.exists(url) else 0
    files.write_json(url, {"begun": deaths + 1})
    return deaths


def end(out: str, item: Item) -> None:
    """Note that a scan has ended, well or not."""
    files.remove(_attempt(out, item))


def _attempt(out: str, item: Item) -> str:
    digest = hashlib.sha256(item.summary.encode()).hexdigest()[:16]
    return files.join(out, ".begun", f"{digest}.json")


def write_tables(
    out: str,
    summaries: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Write `predictions.tsv`, the highest score first, and `quarantine.jsonl`.

    Both also name the files that were left out, so that every file is accounted for.
    """
    absent = [
        *(("quarantined", failure) for failure in failures),
        *(("left out", _left_out(one)) for one in left_out),
    ]
    heads = ("name", "top_score", "top_slice", "mean_score", "proposal_ml", "components")
    lines = ["\t".join((*heads, "largest_ml", "brain_ml", "warnings", "status", "reason"))]
    for one in sorted(summaries, key=lambda one: -float(one["top_score"])):
        proposal = one["proposal"] or {"volume_ml": "n/a", "components": "n/a", "largest_ml": "n/a"}
        cells = [one["name"], one["top_score"], one["top_slice"], one["mean_score"]]
        cells += [proposal["volume_ml"], proposal["components"], proposal["largest_ml"]]
        cells += [one["brain_ml"], len(one["warnings"]), "done", "n/a"]
        lines.append("\t".join(map(_cell, cells)))
    for status, one in absent:
        cells = [one["name"], *["n/a"] * (len(heads) + 2), status, one["reason"]]
        lines.append("\t".join(map(_cell, cells)))
    files.write_bytes(files.join(out, "predictions.tsv"), ("\n".join(lines) + "\n").encode())
    text = "".join(json.dumps(dict(one)) + "\n" for _, one in absent)
    files.write_bytes(files.join(out, "quarantine.jsonl"), text.encode())


def _left_out(one: LeftOut) -> dict[str, str]:
    path = printable(one.path)
    return {"name": path.rsplit("/", 1)[-1], "source": path, "reason": f"left out: {one.reason}"}


def _cell(value: Any) -> str:
    """A value as a cell of a table; a name may hold tabs and ends of lines."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(printable(str(value)).split())
