"""No results are started inside of others, and none of another project's files make them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_cohorts import write_healthy
from tiny_models import SMALL, finished_run, freeze_threshold, scan_of, write_cohort, write_head

from uadray.config import experiment
from uadray.errors import UadrayError
from uadray.prediction.folder import predict_items
from uadray.prediction.inputs import find_items
from uadray.prediction.model_folder import export_model, open_model
from uadray.preparation.ingest import prepare_cohort
from uadray.preparation.settings import SplitConfig
from uadray.results import owner_of
from uadray.runs.folder import Run
from uadray.store import Cohort
from uadray.train.job import fit
from uadray.tune.sweep import fit_trials


class House:
    """A cohort, a run, its model and its predictions, side by side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scans = [write_head(folder / f"scans/{name}_T1w.nii.gz", k) for k, name in
                      enumerate("abc")]  # fmt: skip
        splits = ("train", "train", "validation")
        self.cohort: Cohort = write_cohort(
            folder / "cohort.zarr", list(map(scan_of, self.scans)), splits
        )
        self.run = finished_run(folder / "run", self.cohort, "Intensity")
        freeze_threshold(self.run, 0.8)
        export_model(self.run.url, str(folder / "model"))
        self.predict(str(folder / "predictions"))

    def prepare(self, out: str) -> None:
        scans = list(map(scan_of, self.scans))
        write_cohort(Path(out), scans, ("train", "train", "validation"))

    def train(self, out: str) -> None:
        fit(experiment("Intensity"), self.cohort, out)

    def ingest(self, out: str) -> None:
        prepare_cohort(list(map(scan_of, self.scans)), out, config=SMALL, split=SplitConfig())

    def tune(self, out: str) -> None:
        fit_trials([experiment("Intensity")], self.cohort, out)

    def export(self, out: str) -> None:
        export_model(self.run.url, out)

    def predict(self, out: str) -> None:
        predict_items(open_model(self.run.url), find_items(self.scans, "T1w").items, out)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.mark.parametrize("verb", ["prepare", "ingest", "train", "tune", "export", "predict"])
@pytest.mark.parametrize("place", ["cohort.zarr", "run", "model", "predictions"])
@pytest.mark.parametrize("below", ["new", "deep/er/new", "link"])
def test_inside_of_others_is_refused(house: House, verb: str, place: str, below: str) -> None:
    out = house.folder / place / below
    if below == "link":
        out = house.folder / f"link-{verb}-{place}"
        out.symlink_to(house.folder / place)
        out = out / "new"
    before = sorted(house.folder.rglob("*"))
    job: Callable[[str], None] = getattr(house, verb)
    with pytest.raises(UadrayError, match=r"lies in .* of uadray|lies in a cohort") as error:
        job(str(out))
    assert str(house.folder / place) in str(error.value)
    assert "choose another --out, outside of it" in str(error.value)
    assert sorted(house.folder.rglob("*")) == before


@pytest.mark.parametrize("verb", ["prepare", "ingest", "train", "tune", "export", "predict"])
@pytest.mark.parametrize("below", ["", "new"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_is_no_place_of_a_folder(
    house: House, tmp_path: Path, verb: str, below: str, kind: str
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine") if kind == "file" else taken.symlink_to(tmp_path / "nowhere")
    job: Callable[[str], None] = getattr(house, verb)
    with pytest.raises(UadrayError, match=f"{taken} is a file or leads nowhere"):
        job(str(taken / below))
    assert list(tmp_path.iterdir()) == [taken]


def test_what_stands_beside_them_is_not(house: House) -> None:
    for verb in ("prepare", "train", "export", "predict"):
        getattr(house, verb)(str(house.folder / f"beside/{verb}"))


def test_a_run_inside_of_a_cohort_that_is_there_is_taken_up(house: House) -> None:
    """As an earlier version let them be written."""
    cohort = write_healthy(house.folder / "old")
    run = Run.create(str(house.folder / "elsewhere"), experiment("Intensity"), cohort)
    inside = Path(cohort.url) / "run"
    Path(run.url).rename(inside)
    assert Run.create(str(inside), experiment("Intensity"), cohort).url == str(inside)


def test_another_projects_files_make_no_run(house: House, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"project": "ours"}')
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    assert owner_of(str(tmp_path / "out")) == ""
    assert owner_of(f"{house.run.url}/out").startswith("a run of uadray")
