"""One damaged run is named, by every reader, and the others are read."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run
from tiny_cohorts import tiny_vae
from tiny_models import finished_run, healthy_cohort

from uadray import files
from uadray.errors import RunError, UadrayError
from uadray.prediction.model_folder import export_model, open_model
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.records import Broken, load_runs
from uadray.train.job import fit
from uadray.tune.settings import SweepConfig
from uadray.tune.trials import outcome, settled, status


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    run = finished_run(home / "run", healthy_cohort(home, 8), tiny_vae(3))
    run.write_metrics([{"epoch": 1, "seconds": 1.0, "validation/reconstruction": 0.1}])
    return run


@pytest.fixture
def folder(whole: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.url, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


CONFIGS: dict[str, Callable[[Path], object]] = {
    "cut short": cut,
    "empty": text(b""),
    "no UTF-8": text(b"\xff\xfe{}"),
    "no object": text(b"[]"),
    "null": text(b"null"),
    "no cohort": lambda p: change(p, lambda v: v.pop("cohort")),
    "cohort null": lambda p: change(p, lambda v: v.update(cohort=None)),
    "no shape": lambda p: change(p, lambda v: v["cohort"].pop("shape")),
    "shape of two": lambda p: change(p, lambda v: v["cohort"].update(shape=[16, 16])),
    "shape of text": lambda p: change(p, lambda v: v["cohort"].update(shape="16 16 16")),
    "no experiment": lambda p: change(p, lambda v: v.pop("experiment")),
    "experiment null": lambda p: change(p, lambda v: v.update(experiment=None)),
    "no method": lambda p: change(p, lambda v: v["experiment"].pop("method")),
    "method unknown": lambda p: change(p, lambda v: v["experiment"]["method"].update(type="X")),
    "fit null": lambda p: change(p, lambda v: v["experiment"].update(fit=None)),
    "a lost setting": lambda p: change(p, lambda v: v["experiment"]["fit"].pop("epochs")),
    "epochs as text": lambda p: change(p, lambda v: v["experiment"]["fit"].update(epochs="x")),
    "another network": lambda p: change(p, lambda v: v["network"].update(group_norm_groups=4)),
    "a field too many": lambda p: change(p, lambda v: v["experiment"].update(new=1)),
}
SUMMARIES: dict[str, Callable[[Path], object]] = {
    "cut short": cut,
    "empty": text(b""),
    "no object": text(b"3"),
    "no status": text(b"{}"),
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_config_is_named_by_all(folder: Path, whole: Run, damage: str) -> None:
    CONFIGS[damage](folder / "config.json")
    url = str(folder)
    for read in (
        lambda: Run.open(url),
        lambda: open_model(url),
        lambda: export_model(url, str(folder.parent / "model")),
        lambda: fit(whole.experiment, healthy_cohort(folder.parent, 8), url),
    ):
        with pytest.raises(RunError, match=r"run/config\.json"):
            read()
    task = whole.experiment
    assert status(url) == "failed"
    assert not settled(url, SweepConfig())
    assert "config.json" in outcome(url, task, SweepConfig()).error


@pytest.mark.parametrize("damage", SUMMARIES)
def test_a_damaged_summary_is_named_by_all(folder: Path, whole: Run, damage: str) -> None:
    SUMMARIES[damage](folder / "summary.json")
    url = str(folder)
    for read in (
        lambda: Run.open(url).finished,
        lambda: open_model(url),
        lambda: load_runs([url]),
    ):
        with pytest.raises(RunError, match=r"run/summary\.json"):
            read()
    assert status(url) == "failed"
    assert "summary.json" in outcome(url, whole.experiment, SweepConfig()).error


def test_a_torn_last_line_of_the_record_is_left_out(folder: Path) -> None:
    place = folder / "metrics.jsonl"
    place.write_bytes(place.read_bytes() + b'{"epoch": 2, "train')
    assert [record["epoch"] for record in Run.open(str(folder)).metrics()] == [1]


@pytest.mark.parametrize("content", [b'{"epoch": 1}\nnot json\n{"epoch": 3}\n', b"[]\n{}\n"])
def test_a_damaged_record_is_named(folder: Path, content: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl: line \d is not an epoch"):
        Run.open(str(folder)).metrics()


@pytest.mark.parametrize("name", ["state.json", "epoch-00001", "epoch-00001/model.safetensors"])
def test_a_missing_checkpoint_is_named(folder: Path, name: str) -> None:
    place = folder / "checkpoint" / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(UadrayError, match="checkpoint"):
        load_detector(Run.open(str(folder)))
    with pytest.raises(UadrayError, match="checkpoint"):
        open_model(str(folder))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
def test_a_file_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    whole = files.read_bytes

    def read(url: str) -> bytes:
        if url.endswith(name):
            raise OSError(number, "it may not", url)
        return whole(url)

    monkeypatch.setattr(files, "read_bytes", read)
    with pytest.raises(RunError, match=rf"{name} cannot be read \(it may not\)"):
        load_runs([str(folder)])


def test_a_folder_that_may_not_be_written_to_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run = Run.open(str(folder))
    monkeypatch.setattr(files, "write_bytes", write)
    for act in (lambda: run.finish({"status": "finished"}), lambda: run.write_metrics([])):
        with pytest.raises(RunError, match=r"cannot be written to \(Read-only file system\)"):
            act()


class TestOthers:
    """Nine whole runs beside one that is not."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        for seed in range(4):
            write_run(tmp_path / "runs" / f"r{seed}", seed=seed, num_test=6)
        return tmp_path / "runs"

    @pytest.mark.parametrize(
        "name",
        ["config.json", "summary.json", "evaluation/stroke.json", "evaluation/stroke-cases.npz"],
    )
    def test_are_read(self, runs: Path, name: str) -> None:
        cut(runs / "r2" / name)
        broken: list[Broken] = []
        loaded = load_runs([str(runs)], broken)
        (one,) = broken
        assert one.name == "r2"
        assert name.split("/")[-1] in one.error
        whole = [run.url.rsplit("/", 1)[-1] for run in loaded if run.evaluations]
        assert whole == ["r0", "r1", "r3"]
        with pytest.raises(RunError, match="r2"):
            load_runs([str(runs)])

    def test_are_read_where_one_may_not_be_listed(
        self, runs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = files.list_names

        def names(url: str) -> list[str]:
            if url.endswith("r1"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return whole(url)

        monkeypatch.setattr(files, "list_names", names)
        broken: list[Broken] = []
        assert len(load_runs([str(runs)], broken)) == 3
        assert "r1 cannot be listed (Permission denied)" in broken[0].error

    def test_are_read_where_one_has_lost_its_settings(self, runs: Path) -> None:
        (runs / "r0/config.json").unlink()
        broken: list[Broken] = []
        assert len(load_runs([str(runs), str(runs / "absent")], broken)) == 3
        assert [one.name for one in broken] == ["r0", "absent"]

    def test_none_is_left(self, runs: Path) -> None:
        for k in range(4):
            cut(runs / f"r{k}/config.json")
        with pytest.raises(RunError, match=r"r0/config\.json"):
            load_runs([str(runs)], [])


EVALUATION = {
    "a metric": lambda v: v["metrics"].update(dice_d="x"),
    "intervals": lambda v: v.update(intervals=None),
    "an interval": lambda v: v["intervals"].update(dice_d=[1]),
    "an interval of words": lambda v: v["intervals"].update(dice_d=["a", "b"]),
    "subjects": lambda v: v.update(subjects=None),
    "a subject": lambda v: v["subjects"].__setitem__(0, 3),
    "a subject's figure": lambda v: v["subjects"][0].update(dice="x"),
    "the threshold": lambda v: v["threshold"].update(value="x"),
    "the notes": lambda v: v["cohort"].update(notes=3),
    "a count": lambda v: v.update(num_test="three"),
}


@pytest.mark.parametrize("edit", EVALUATION.values(), ids=EVALUATION)
def test_figures_of_another_kind_are_one_runs_own(tmp_path: Path, edit) -> None:
    bad, good = (write_run(tmp_path / name) for name in ("bad", "good"))
    (place,) = (p for p in Path(bad, "evaluation").glob("*.json") if "threshold" not in p.name)
    change(place, edit)
    broken: list[Broken] = []
    runs = load_runs([str(bad), str(good)], broken)
    assert [len(run.evaluations) for run in runs] == [0, 1]
    assert str(place) in broken[0].error


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("summary.json", lambda v: v.update(fit_seconds="x")),
        ("summary.json", lambda v: v.update(warnings=3)),
        ("config.json", lambda v: v["experiment"].update(fit=[])),
        ("metrics.jsonl", '{"epoch": 1e400}\n{"epoch": 2}\n'),
        ("metrics.jsonl", '{"epoch": 1, "train/reconstruction": "x"}\n{"epoch": 2}\n'),
        ("summary.json", "[" * 100_000),
    ],
)
def test_records_of_another_kind_are_one_runs_own(tmp_path: Path, name: str, edit) -> None:
    bad, good = (write_run(tmp_path / run) for run in ("bad", "good"))
    place = Path(bad, name)
    place.write_text(edit) if isinstance(edit, str) else change(place, edit)
    broken: list[Broken] = []
    assert [run.url for run in load_runs([str(bad), str(good)], broken)] == [str(good)]
    assert name in broken[0].error
