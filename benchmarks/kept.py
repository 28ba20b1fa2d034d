"""What a long study keeps of each fit: its run folder without weights and scores, a few KiB.

A study of many fits goes on from these on any machine, and its figures are made from them alone.
"""

import io
import json
import tarfile
from pathlib import Path

from uadray import files
from uadray.config import Experiment, to_json
from uadray.runs.folder import Run
from uadray.store import Cohort

PARTS = ("config.json", "metrics.jsonl", "summary.json", "checkpoint/state.json")
"""Of a run folder; the last has the digests of the weights, without which no figure is believed."""

EVALUATION = ("evaluation/*.json", "evaluation/*-people.npz")
"""The same of its evaluations; the rest is for pictures."""

SUFFIX = ".tar.xz"


def is_kept(folder: Path, name: str, wanted: Experiment, cohort: Cohort) -> bool:
    """Whether a fit of this experiment on this cohort is kept under that name.

    Raises:
        SystemExit: one of another experiment or on another cohort is.
    """
    if not (place := _place(folder, name)).exists():
        return False
    with tarfile.open(place) as archive:
        member = archive.extractfile("config.json")
        config = json.loads(member.read()) if member else {}
    is_same = config.get("experiment") == json.loads(json.dumps(to_json(wanted)))
    if not is_same or config["cohort"]["fingerprint"] != cohort.fingerprint:
        raise SystemExit(
            f"{place} keeps a fit with other settings or on another cohort: give the settings that "
            "it was made with, or move the folder aside to begin anew"
        )
    return True


def _place(folder: Path, name: str) -> Path:
    return folder / f"{name}{SUFFIX}"


def keep(run: Run, folder: Path, name: str) -> None:
    """Keep an evaluated run; the same run is the same bytes."""
    url, buffer = Path(run.url), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        for path in sorted(path for part in (*PARTS, *EVALUATION) for path in url.glob(part)):
            entry = tarfile.TarInfo(path.relative_to(url).as_posix())
            content = path.read_bytes()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    files.write_bytes(str(_place(folder, name)), buffer.getvalue())


def unpacked(folder: Path, to: Path) -> dict[str, Path]:
    """Unpack what is kept of each fit; the run folders by name."""
    runs = {}
    for archive in sorted(folder.glob(f"*{SUFFIX}")):
        name = archive.name.removesuffix(SUFFIX)
        runs[name] = to / name
        with tarfile.open(archive) as content:
            content.extractall(runs[name], filter="data")
    return runs
