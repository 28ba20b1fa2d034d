"""Model folders: whole or refused, alike wherever they lie, and enough to predict with."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markdown_tables import rows_of
from tiny_cohorts import tiny_vae
from tiny_models import (
    finished_run,
    freeze_threshold,
    healthy_cohort,
    scan_of,
    write_head,
)

from uadray import files
from uadray.errors import ConfigError, ModelError, RunError
from uadray.metrics.postprocess import smallest_findable_mm
from uadray.prediction import model_folder
from uadray.prediction.model import FORMAT
from uadray.prediction.model_folder import export_model, open_model
from uadray.prediction.scan import predict_scan
from uadray.runs.folder import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    run = finished_run(home / "run", healthy_cohort(home, 8), "MeanImage")
    freeze_threshold(run, 0.2)
    return run


@pytest.fixture
def model_url(run: Run, tmp_path: Path) -> str:
    export_model(run.url, str(tmp_path / "model"), licence="CC-BY-4.0", onnx=False)
    return str(tmp_path / "model")


def test_predicts_from_the_folder_alone(tmp_path: Path) -> None:
    cohort = healthy_cohort(tmp_path / "lab", 8)
    run = finished_run(tmp_path / "lab/run", cohort, "MeanImage")
    freeze_threshold(run, 0.2)
    path = write_head(tmp_path / "p_T1w.nii.gz", 3, lesion=True)
    expected = predict_scan(open_model(run.url), scan_of(path))
    export_model(run.url, str(tmp_path / "model"), onnx=False)
    shutil.rmtree(tmp_path / "lab")
    alone = open_model(str(tmp_path / "model"))
    prediction = predict_scan(alone, scan_of(path))
    assert np.array_equal(prediction.anomaly, expected.anomaly)
    assert np.array_equal(prediction.proposal, expected.proposal)
    assert prediction.proposal.any()
    assert prediction.summary["warnings"] == expected.summary["warnings"]
    assert prediction.summary["threshold"] == expected.summary["threshold"]
    assert prediction.summary["run"] == expected.summary["run"]


def test_nothing_in_it_names_the_makers_machine(run: Run, model_url: str) -> None:
    home = str(Path(run.url).parent)
    for path in Path(model_url).iterdir():
        assert home.encode() not in path.read_bytes(), path.name
        assert b"/somewhere" not in path.read_bytes(), path.name


@pytest.mark.parametrize("place", ["memory://models/mean", "file"])
def test_any_url(run: Run, tmp_path: Path, place: str) -> None:
    url = f"file://{tmp_path}/m" if place == "file" else place
    exported, _ = export_model(run.url, url, onnx=False)
    assert open_model(url).identity == exported.identity == open_model(run.url).identity


def test_again_is_the_same_model_with_later_evaluations(run: Run, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(run.url, tmp_path / "run"))
    first, _ = export_model(str(mine), str(tmp_path / "model"), onnx=False)
    freeze_threshold(Run.open(str(mine)), 0.3, cohort="tumour")
    again, _ = export_model(str(mine), str(tmp_path / "model"), onnx=False)
    assert first.identity == again.identity
    assert [t.name for t in again.thresholds] == ["stroke", "tumour"]


class TestCard:
    def test_says_what_a_user_must_know(self, run: Run, model_url: str) -> None:
        card = (Path(model_url) / "MODEL_CARD.md").read_text()
        assert "license: cc-by-4.0" in card
        assert "The weights: CC-BY-4.0." in card
        assert "not a medical device" in card
        assert "0.500 [0.400, 0.600]" in card  # Dice_D with its interval
        assert "semi-synthetic" in card
        assert "6 train, 2 validation" in card
        edges = [mm / 16 for mm in (28, 30, 26)]
        assert f"less than {smallest_findable_mm(edges, 5):.1f} mm in diameter may be lost" in card
        assert "the median's window is 8.75 x 9.38 x 8.12 mm" in card
        assert run.experiment.fingerprint in card
        row = next(row for row in rows_of(card) if row[0] == "stroke")
        assert row[:3] == ["stroke", "0.2", "bengs_bisection"]
        assert row[3].startswith("stroke/threshold: 5 subjects")

    def test_of_a_run_that_was_never_evaluated(self, run: Run, tmp_path: Path) -> None:
        bare = Path(shutil.copytree(run.url, tmp_path / "run"))
        shutil.rmtree(bare / "evaluation")
        export_model(str(bare), str(tmp_path / "model"), onnx=False)
        card = (tmp_path / "model/MODEL_CARD.md").read_text()
        assert "nothing is known of its use" in card
        assert "No threshold was fitted" in card
        assert "not stated" in card


class TestRefused:
    def test_cut_short(self, model_url: str) -> None:
        (Path(model_url) / "manifest.json").unlink()
        with pytest.raises(ModelError, match=r"cut short; run the same jobs/export\.py"):
            open_model(model_url)

    def test_killed_while_it_is_written(self, run, model_url, monkeypatch) -> None:
        """At no moment does an older manifest stand beside newer files."""
        write = files.write_bytes

        def killed(url: str, content: bytes) -> None:
            if url.endswith("healthy.json"):
                raise KeyboardInterrupt
            write(url, content)

        with monkeypatch.context() as patch:
            patch.setattr("uadray.files.write_bytes", killed)
            with pytest.raises(KeyboardInterrupt):
                export_model(run.url, model_url, onnx=False)
        with pytest.raises(ModelError, match="cut short"):
            open_model(model_url)
        export_model(run.url, model_url, onnx=False)
        assert open_model(model_url)

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "experiment.json", "thresholds.json", "healthy.json"]
    )
    def test_a_changed_file(self, model_url: str, name: str) -> None:
        path = Path(model_url) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ModelError, match=rf"{name} is not the file that was exported.*again"):
            open_model(model_url)

    def test_a_missing_file(self, model_url: str) -> None:
        (Path(model_url) / "preprocessing.json").unlink()
        with pytest.raises(ModelError, match=r"preprocessing.json is missing: copy the model"):
            open_model(model_url)

    def test_a_later_format(self, model_url: str) -> None:
        _rewrite(Path(model_url) / "manifest.json", format=FORMAT + 1)
        with pytest.raises(ModelError, match=rf"format {FORMAT + 1}.*reads format {FORMAT}: inst"):
            open_model(model_url)

    def test_settings_that_this_version_does_not_know(self, model_url: str) -> None:
        path = Path(model_url) / "experiment.json"
        held = json.loads(path.read_text())
        held["experiment"]["fit"]["momentum"] = 0.9
        path.write_text(json.dumps(held))
        _seal(Path(model_url))
        with pytest.raises(ModelError, match=r"no field \['momentum'\].*install that version"):
            open_model(model_url)

    def test_a_fingerprint_that_does_not_fit(self, model_url: str) -> None:
        path = Path(model_url) / "experiment.json"
        held = json.loads(path.read_text())
        held["experiment"]["fit"]["seed"] = 17
        path.write_text(json.dumps(held))
        _seal(Path(model_url))
        with pytest.raises(ModelError, match=r"its records say.*install that version"):
            open_model(model_url)

    def test_weights_of_another_shape(self, model_url: str) -> None:
        path = Path(model_url) / "experiment.json"
        held = json.loads(path.read_text())
        held["shape"] = [16, 16, 18]
        path.write_text(json.dumps(held))
        _seal(Path(model_url))
        with pytest.raises(ModelError, match="cannot build"):
            open_model(model_url)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="neither a run folder nor a model folder"):
            open_model(str(tmp_path))

    def test_over_something_else(self, run: Run, tmp_path: Path, model_url: str) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ModelError, match=r"holds other files, first model: choose another"):
            export_model(run.url, str(tmp_path), onnx=False)
        for owner in (run.url, _cohort(run).url, model_url):
            with pytest.raises(ModelError, match=r"lies in a .*: choose another --out"):
                export_model(run.url, f"{owner}/model", onnx=False)
        other = finished_run(tmp_path / "other", _cohort(run), "ZScore")
        with pytest.raises(ModelError, match=r"holds another model \(MeanImage"):
            export_model(other.url, model_url, onnx=False)

    @pytest.mark.parametrize(
        ("name", "path", "value"),
        [
            ("thresholds", (0, "value"), None),
            ("thresholds", (0, "value"), float("nan")),
            ("thresholds", (0, "value"), float("inf")),
            ("thresholds", (0, "value"), -0.1),
            ("thresholds", (0, "value"), "0.2"),
            ("thresholds", (0, "value"), 0.3),
            ("thresholds", (0, "value"), 7.0),
            ("thresholds", (0, "level"), None),
            ("thresholds", (0, "level"), 0),
            ("thresholds", (0, "level"), 13107.5),
            ("thresholds", (0, "rule"), None),
            ("thresholds", (0, "config"), None),
            ("thresholds", (0, "config", "postprocess", "median_size"), None),
            ("thresholds", (0, "config", "components", "max_size"), -1),
            ("thresholds", (0,), None),
            ("thresholds", (), None),
            ("healthy", ("mean_score",), None),
            ("healthy", ("mean_score",), float("nan")),
            ("healthy", ("score_spread",), 0),
            ("healthy", ("measures", 0, "median"), None),
            ("healthy", ("histogram",), None),
            ("healthy", (), []),
            ("preprocessing", ("shape",), None),
            ("preprocessing", ("shape",), [16, 16]),
            ("preprocessing", ("extent",), None),
            ("preprocessing", ("spacing_mm",), float("nan")),
            ("preprocessing", ("denoise",), "yes"),
            ("experiment", ("origin",), None),
            ("experiment", ("origin", "modality"), None),
            ("experiment", ("origin", "splits"), {"train": None}),
            ("experiment", ("shape",), [16, None, 16]),
            ("experiment", ("shape",), "16"),
            ("experiment", ("versions",), None),
            ("experiment", ("fingerprint",), 7),
            ("experiment", ("experiment", "fit", "epochs"), None),
            ("experiment", ("experiment", "method"), None),
            ("experiment", ("experiment",), None),
            ("experiment", (), None),
        ],
    )
    def test_a_field_of_another_kind(self, model_url, name, path, value) -> None:
        place = Path(model_url) / f"{name}.json"
        held = json.loads(place.read_text())
        if path:
            inner = held
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = value
        else:
            held = value
        place.write_text(json.dumps(held))
        _seal(Path(model_url))
        field = next((step for step in reversed(path) if isinstance(step, str)), "")
        with pytest.raises(ModelError, match=rf"(?i){name}\.json.*{field}"):
            open_model(model_url)

    @pytest.mark.parametrize("name", ["thresholds", "healthy", "preprocessing", "experiment"])
    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"7", b"null", b"[null]"])
    def test_a_file_that_is_cut_short(self, model_url, name, content) -> None:
        (Path(model_url) / f"{name}.json").write_bytes(content)
        _seal(Path(model_url))
        with pytest.raises(ModelError, match=rf"{name}\.json"):
            open_model(model_url)

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"7", b"null", b"[1]", b"{}"])
    def test_a_manifest_that_is_cut_short(self, model_url, content) -> None:
        (Path(model_url) / "manifest.json").write_bytes(content)
        with pytest.raises(ModelError, match=r"manifest\.json"):
            open_model(model_url)

    @pytest.mark.parametrize("field", ["format", "name", "identity", "versions", "files"])
    @pytest.mark.parametrize("value", [None, [], 1.5])
    def test_a_field_of_the_manifest(self, model_url, field, value) -> None:
        _rewrite(Path(model_url) / "manifest.json", **{field: value})
        with pytest.raises(ModelError, match=rf"manifest\.json: {field} must be of type"):
            open_model(model_url)

    @pytest.mark.parametrize(
        "name", ["", "manifest.json", "thresholds.json", "model.safetensors", "experiment.json"]
    )
    def test_what_may_not_be_read(self, model_url, monkeypatch, name) -> None:
        read, listed = files.read_bytes, files.list_names

        def closed(url: str) -> Any:
            if url.endswith(name or model_url):
                raise PermissionError(13, "Permission denied")
            return (read if name else listed)(url)

        monkeypatch.setattr(files, "read_bytes" if name else "list_names", closed)
        with pytest.raises(ModelError, match=rf"{name}: cannot be read \(Permission denied\)"):
            open_model(model_url)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("threshold", "value"), None),
            (("threshold", "value"), float("nan")),
            (("threshold", "value"), -1.0),
            (("threshold", "level"), None),
            (("threshold",), None),
            (("cohort",), None),
            (("settings",), None),
            (("settings", "postprocess"), None),
            ((), []),
        ],
    )
    def test_a_run_with_such_an_evaluation(self, run, tmp_path, path, value) -> None:
        mine = Path(shutil.copytree(run.url, tmp_path / "run"))
        place = mine / "evaluation/stroke.json"
        held = json.loads(place.read_text())
        inner = held
        for step in path[:-1]:
            inner = inner[step]
        if path:
            inner[path[-1]] = value
        else:
            held = value
        place.write_text(json.dumps(held))
        with pytest.raises(RunError, match=r"stroke\.json is damaged .*: evaluate the run again"):
            open_model(str(mine))

    def test_what_a_run_kept_is_made_again(self, run: Run, tmp_path: Path) -> None:
        mine = Path(shutil.copytree(run.url, tmp_path / "run"))
        first = open_model(str(mine))
        kept = json.loads((mine / "predict.json").read_text())
        for broken in ({**kept, "origin": None}, {**kept, "healthy": {}}, [], None):
            (mine / "predict.json").write_text(json.dumps(broken))
            assert open_model(str(mine)).healthy == first.healthy
            assert json.loads((mine / "predict.json").read_text()) == kept

    def test_a_version_that_made_it_is_named(self, model_url: str) -> None:
        manifest = Path(model_url) / "manifest.json"
        held = json.loads(manifest.read_text())
        held["versions"]["uadray"] = "0.0.9"
        manifest.write_text(json.dumps(held))
        assert "exported by uadray 0.0.9" in open_model(model_url).notes[0]


def _cohort(run: Run):  # type: ignore[no-untyped-def]
    from uadray.store import open_cohort

    return open_cohort(run.cohort_url)


def _rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _seal(model: Path) -> None:
    """Write a manifest that fits the files."""
    import hashlib

    held = json.loads((model / "manifest.json").read_text())
    for name in held["files"]:
        held["files"][name] = hashlib.sha256((model / name).read_bytes()).hexdigest()
    (model / "manifest.json").write_text(json.dumps(held))


class TestOnnx:
    @pytest.mark.slow  # loading the exporter takes longest
    @pytest.mark.parametrize("ndim", [2, 3])
    def test_reconstructs_as_torch(self, run: Run, tmp_path: Path, ndim: int) -> None:
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        fitted = finished_run(tmp_path / "vae", _cohort(run), tiny_vae(ndim))
        model, notes = export_model(fitted.url, str(tmp_path / "model"), onnx=True)
        assert notes == []
        network = runtime.InferenceSession(str(tmp_path / "model/reconstruction.onnx"))
        for batch in (1, 3):
            x = torch.rand(batch, 1, 16, 16, 16, generator=torch.Generator().manual_seed(batch))
            (output,) = network.run(["reconstruction"], {"image": x.numpy()})
            with torch.inference_mode():
                expected = model.detector.reconstruct(x).numpy()
            assert output.shape == expected.shape
            assert np.abs(output - expected).max() < 1e-5

    def test_a_method_without_one(self, run: Run, tmp_path: Path) -> None:
        plain = finished_run(tmp_path / "histeq", _cohort(run), "HistEq")
        _, notes = export_model(plain.url, str(tmp_path / "model"))
        assert notes == []
        assert not (tmp_path / "model/reconstruction.onnx").exists()
        with pytest.raises(ConfigError, match="no reconstruction to write as ONNX"):
            export_model(plain.url, str(tmp_path / "model"), onnx=True)

    def test_without_the_packages(self, run, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(model_folder, "has_onnx", lambda: False)
        _, notes = export_model(run.url, str(tmp_path / "model"))
        assert notes == ["no reconstruction.onnx: it needs pip install -e '.[onnx]'"]
