r"""Write a run as a model folder: to be copied, shared, and predicted with, away from its cohort.

    python jobs/export.py runs/3D-Cube-n --out models/3D-Cube-n --licence CC-BY-4.0
    python jobs/export.py runs/3D-Cube-n --out s3://bucket/models/3D-Cube-n
    python jobs/predict.py models/3D-Cube-n scan.nii.gz --out predicted

The folder holds the weights (safetensors), the experiment, the preparation, the frozen thresholds,
what healthy scans look like, the evaluations on record, a model card, and the reconstruction as
ONNX (pip install -e '.[onnx]'). manifest.json, written last, has the SHA-256 of each file; a
folder without it, or with another file than it says, is refused. The same command again writes the
same model again, with the evaluations that have come since.
"""

import shlex
from dataclasses import dataclass
from typing import Literal

import tyro

from uadray import files


@dataclass(frozen=True, kw_only=True)
class Export:
    """What to export, and where to."""

    run: tyro.conf.Positional[str]
    """A finished run; a local path or an fsspec URL."""
    out: str
    """The model folder; a local path or an fsspec URL."""
    licence: str = ""
    """Licence of the weights, as an SPDX name such as CC-BY-4.0; the card says so where none is
    given."""
    cohort: str = ""
    """Where the run's cohort lies now, if it has moved since the fit."""
    onnx: Literal["auto", "yes", "no"] = "auto"
    """Write the reconstruction as ONNX; `auto` does where the method has one and the packages are
    there."""


def main() -> None:
    job = tyro.cli(Export, description=__doc__)
    from uadray.prediction.model_folder import export_model

    model, notes = export_model(
        job.run,
        job.out,
        cohort=job.cohort,
        licence=job.licence,
        onnx={"auto": None, "yes": True, "no": False}[job.onnx],
    )
    print(f"{model.experiment.name}: model {model.identity} at {model.url}")
    for name in files.list_names(model.url):
        print(f"  {name} {len(files.read_bytes(files.join(model.url, name))) / 1024:,.0f} KiB")
    for note in notes:
        print(f"  note: {note}")
    if not model.thresholds:
        print("  note: no threshold is frozen: evaluate the run and export it again")
    print(f"next: python jobs/predict.py {shlex.quote(model.url)} scan.nii.gz --out predicted")
