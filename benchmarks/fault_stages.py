"""The four stages as `benchmarks.faults` runs them: inputs, commands, progress, and what is whole.

As a process inside a network (`python -m benchmarks.fault_stages`) it answers one JSON line with
another one: see `Agent`.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUM_SCANS, NUM_HEALTHY, NUM_LESIONED, SIZE = 64, 40, 48, 16
EPOCHS, TUNE_EPOCHS = 24, 6

INPUTS = "s3://data/inputs"

_SMALL_NET = ("--method.widths", "8", "16", "--method.bottleneck", "4", "--method.latent-size", "8")
_RUNS = ("3D-None", "HistEq")
"""What is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the flow."""

    name: str
    command: Callable[[str], list[object]]
    """The job and its arguments for an output."""
    unit: str
    """What progress counts."""
    progress: Callable[[Iterable[str]], int]
    """How far the job is, from the paths below its output that it has written."""
    middle: int
    """A fault comes once progress has reached it."""
    worker: str
    """Pattern of the command lines of the processes that compute."""


def _prepare(out: str) -> list[object]:
    # A brain of 72 x 84 x 78 voxels of 1 mm.
    extent = ("--left-right", 72, "--posterior-anterior", 84, "--inferior-superior", 78)
    source = f"{INPUTS}/scans/scans.csv"
    grid = ("--size", SIZE, *extent, "--min-brain-ml", 10)
    return ["jobs/prepare.py", "csv", source, "--out", f"{out}/c.zarr", *grid]


def _fit(out: str) -> list[object]:
    return [
        *("jobs/train.py", "3D-Cube-n", "--cohort", f"{INPUTS}/healthy.zarr", "--out", f"{out}/r"),
        *("--scale.num-workers", 2, "--scale.cpus-per-worker", 0.75, *_SMALL_NET),
        *("--fit.epochs", EPOCHS, "--fit.batch-size", 8, "--fit.precision", "float32"),
    ]


def _tune(out: str) -> list[object]:
    return [
        *("jobs/tune.py", "smoke", "--cohort", f"{INPUTS}/healthy.zarr", "--out", f"{out}/s"),
        *("--space.experiments", "2D-None", "2D-Patch-n", "--space.latent-size", 8, 16),
        *("--space.fit.epochs", TUNE_EPOCHS, "--space.fit.batch-size", 64, "--space.no-baselines"),
        *("--space.fit.precision", "float32"),
    ]


def _evaluate(out: str) -> list[object]:
    runs = [f"{out}/runs/{name}" for name in _RUNS]
    cohort = ("--cohort", f"{INPUTS}/tumour.zarr", "--num-resamples", 50)
    return ["jobs/evaluate.py", *runs, *cohort]


def _distinct(pattern: str) -> Callable[[Iterable[str]], int]:
    """Counts the paths that end in a pattern."""
    return lambda paths: len({p for p in paths if re.search(pattern + "$", p)})


def _epochs(paths: Iterable[str]) -> int:
    """Sums up the newest epochs of all runs."""
    newest: dict[str, int] = {}
    for path in paths:
        match = re.search(r"(.*)/checkpoint/epoch-(\d+)/", path)
        if match:
            newest[match[1]] = max(newest.get(match[1], 0), int(match[2]))
    return sum(newest.values())


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="prepare",
            command=_prepare,
            unit="scans",
            progress=_distinct(r"/rows/\d+-[0-9a-f]*-[0-9a-f]*\.npz"),
            middle=NUM_SCANS // 3,
            worker=r"^ray::(?!IDLE).*([Mm]ap|_Once)",
        ),
        Stage(
            name="fit",
            command=_fit,
            unit="epochs",
            progress=_epochs,
            middle=EPOCHS // 3,
            worker=r"^ray::.*RayTrainWorker",
        ),
        Stage(
            name="tune",
            command=_tune,
            unit="epochs",
            progress=_epochs,
            middle=2 * TUNE_EPOCHS // 2,
            worker=r"^ray::.*(_trial|ImplicitFunc)",
        ),
        Stage(
            name="evaluate",
            command=_evaluate,
            unit="scored volumes",
            progress=_distinct(r"/counts/\d+\.npz"),
            middle=2 * NUM_LESIONED // 3,
            worker=r"^ray::.*(MapWorker|Scorer)",
        ),
    )
}
"""By name, in the order of the flow."""


class Agent:
    """Lays out inputs and reads results on the storage that only a network's inside can reach.

    Each method is asked for by a line `[method, arguments...]`, and its return value is the answer.
    """

    def inputs(self, cache: str) -> None:
        """Put the inputs on S3; make them first where `cache` does not hold them yet."""
        folder = Path(cache)
        if not (folder / "ready").exists():
            if not (folder / "scans" / "scans.csv").exists():
                _write_scans(folder / "scans")
            for kind, count in (("healthy", NUM_HEALTHY), ("tumour", NUM_LESIONED)):
                out = ("--out", folder / f"{kind}.zarr", "--count", count, "--size", SIZE)
                _run("jobs/prepare.py", "phantom", kind, *out)
            for name in _RUNS:
                place = ("--cohort", folder / "healthy.zarr", "--out", folder / "runs" / name)
                net = (*_SMALL_NET, "--fit.epochs", 5, "--fit.batch-size", 8)
                _run("jobs/train.py", name, *place, *(net if name != "HistEq" else ()))
            (folder / "ready").touch()
        _copy(folder, INPUTS)

    def lay_out(self, stage: str, cache: str, out: str) -> None:
        """Put what a stage adds to at its output."""
        if stage == "evaluate":
            _copy(Path(cache) / "runs", f"{out}/runs")

    def whole(self, stage: str, out: str) -> dict[str, dict[str, Any]]:
        """Every part of a stage's output that says that it is whole: its digest, and a figure."""
        import fsspec

        for fs in fsspec.get_filesystem_class("s3")._cache.values():
            fs.invalidate_cache()
        parts: Mapping[str, dict[str, Any]] = getattr(self, f"_{stage}")(out)
        return {
            name: {"digest": _digest(content), "figure": content["figure"]}
            for name, content in parts.items()
        }

    def remove(self, out: str) -> None:
        """Remove an output."""
        from uadray import files

        files.remove(out)

    def _prepare(self, out: str) -> dict[str, Any]:
        from uadray.errors import StoreError
        from uadray.store import open_cohort, verify

        url = f"{out}/c.zarr"
        try:
            if verify(url):
                return {}
        except StoreError:
            return {}
        cohort = open_cohort(url)
        # But for when the sources were last written: each network has a copy of its own.
        table = cohort.subjects.drop(columns="source_stamp").to_json(orient="records")
        return {"cohort": {"figure": cohort.fingerprint, "table": table}}

    def _fit(self, out: str) -> dict[str, Any]:
        return _fitted({"run": f"{out}/r"})

    def _tune(self, out: str) -> dict[str, Any]:
        from uadray import files

        runs = f"{out}/s/runs"
        return _fitted({name: files.join(runs, name) for name in files.list_names(runs)})

    def _evaluate(self, out: str) -> dict[str, Any]:
        from uadray import files

        records = {}
        for name in _RUNS:
            url = f"{out}/runs/{name}/evaluation/tumour"
            if not files.exists(f"{url}.json"):
                continue
            record = files.read_json(f"{url}.json")
            records[name] = {
                "figure": record["metrics"]["auprc"],
                "record": _lasting(record),
                "threshold": _lasting(files.read_json(f"{url}-threshold.json")),
                "levels": _levels(f"{out}/runs/{name}/scores/tumour.zarr"),
            }
        return records


def _fitted(urls: Mapping[str, str]) -> dict[str, Any]:
    """The runs among them that are finished, read back with the checks of a user's next step."""
    from uadray import files
    from uadray.errors import UadrayError
    from uadray.runs.detector import load_detector
    from uadray.runs.folder import Run

    fitted = {}
    for name, url in urls.items():
        if not files.exists(f"{url}/config.json"):
            continue
        run = Run.open(url)
        if not run.finished:
            continue
        assert run.summary is not None
        try:
            weights = load_detector(run).state_dict()
        except UadrayError as error:
            fitted[name] = {"figure": None, "error": str(error)}
            continue
        fitted[name] = {
            "figure": run.summary["validation/reconstruction"],
            "records": _lasting(run.metrics()),
            "weights": {k: _digest(v.double().tolist()) for k, v in weights.items()},
            "files": files.read_json(f"{url}/checkpoint/state.json"),
        }
    return fitted


def _levels(url: str) -> str:
    """Digest of all kept scores."""
    from uadray.store import open_array

    levels: Any = open_array(url, "scores")
    return hashlib.sha256(np.ascontiguousarray(levels[:]).tobytes()).hexdigest()


def _lasting(value: Any) -> Any:
    """A JSON value without times and places."""
    if isinstance(value, dict):
        return {
            k: _lasting(v) for k, v in value.items() if "second" not in k and not k.endswith("url")
        }
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _copy(folder: Path, url: str) -> None:
    from uadray import files

    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.write_bytes(files.join(url, str(path.relative_to(folder))), path.read_bytes())


def _run(*command: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _write_scans(folder: Path) -> None:
    """Textured brains as NIfTI files, and the table that names them."""
    import nibabel as nib
    from scipy import ndimage

    shape = np.array((80, 92, 86))
    grid = np.indices(shape).transpose(1, 2, 3, 0) - (shape - 1) / 2
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_SCANS):
        rng = np.random.default_rng(number)
        inside = ((grid / (shape * rng.uniform(0.36, 0.44, 3))) ** 2).sum(-1) <= 1
        texture = ndimage.gaussian_filter(rng.standard_normal(shape), 2) * 40
        image = np.where(inside, np.clip(100 + texture, 1, 250), 0).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"scan-{number:03d}.nii.gz")
    lines = [f"scan-{n:03d}.nii.gz,scan-{n:03d}" for n in range(NUM_SCANS)]
    (folder / "scans.csv").write_text("\n".join(["image,id", *lines]) + "\n")


def main() -> None:
    agent = Agent()
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(agent, method)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
