"""Folders of scans: names, resumption, quarantine, and whose folder it is."""

import csv
import gzip
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny_models import finished_run, freeze_threshold, healthy_cohort, write_head

import uadray
from uadray import files
from uadray.errors import EvaluationError, NoScanFoundError, PredictError, ScanError
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.settings import PostprocessConfig
from uadray.naming import name_key
from uadray.prediction import folder as folder_module
from uadray.prediction import outputs
from uadray.prediction.folder import InProcess, predict_items
from uadray.prediction.inputs import Item, find_items
from uadray.prediction.job import PredictJob
from uadray.prediction.model import Model
from uadray.prediction.model_folder import export_model, open_model
from uadray.prediction.scan import Prediction, predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.layouts import Scan
from uadray.runs.folder import Run
from uadray.store import Cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return healthy_cohort(tmp_path_factory.mktemp("home"), 8)


@pytest.fixture(scope="module")
def run(cohort: Cohort) -> Run:
    run = finished_run(Path(cohort.url).parent / "run", cohort, "Intensity")
    freeze_threshold(run, 0.8)
    return run


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return open_model(run.url)


def three(folder: Path) -> list[str]:
    return [write_head(folder / f"in/{name}_T1w.nii.gz", k) for k, name in enumerate("abc")]


def items_of(paths: Sequence[str]) -> tuple[Item, ...]:
    return find_items(paths, "T1w").items


class TestResume:
    def test_a_second_call_repeats_nothing(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path))
        out = str(tmp_path / "out")
        first = predict_items(model, items[:2], out)
        written = {p: p.stat().st_mtime_ns for p in Path(out).rglob("*.nii.gz")}
        assert [s["name"] for s in first.summaries] == ["a_T1w", "b_T1w"]
        ended: list[str] = []
        again = predict_items(model, items, out, report=lambda one: ended.append(one.name))
        assert ended == ["c_T1w"]
        assert again.num_kept == 2
        assert len(again.summaries) == 3
        assert all(p.stat().st_mtime_ns == when for p, when in written.items())
        rows = (Path(out) / "predictions.tsv").read_text().splitlines()
        assert len(rows) == 4
        scores = [float(row.split("\t")[1]) for row in rows[1:]]
        assert scores == sorted(scores, reverse=True)

    def test_another_file_is_predicted_again(self, tmp_path: Path, model: Model) -> None:
        paths = three(tmp_path)
        out = str(tmp_path / "out")
        before = predict_items(model, items_of(paths), out)
        write_head(Path(paths[1]), 9, sizes=(1.0, 1.0, 1.5))
        after = predict_items(model, items_of(paths), out)
        assert after.num_kept == 2
        changed = [
            a["name"]
            for a, b in zip(before.summaries, after.summaries, strict=True)
            if a["slice_scores"] != b["slice_scores"]
        ]
        assert changed == ["b_T1w"]

    def test_what_was_cut_short_is_done_again(self, tmp_path, model, monkeypatch) -> None:
        items = items_of(three(tmp_path))
        out = str(tmp_path / "out")

        def killed(url: str, value: object) -> None:
            if url.endswith("b_T1w/summary.json"):
                raise KeyboardInterrupt
            write(url, value)

        write = files.write_json
        with monkeypatch.context() as patch:
            patch.setattr("uadray.files.write_json", killed)
            with pytest.raises(KeyboardInterrupt):
                predict_items(model, items, out)
        done = predict_items(model, items, out)
        assert (done.num_kept, len(done.summaries)) == (1, 3)
        assert not (Path(out) / ".begun").exists()


class TestIdentity:
    """Never another scan's map: content, settings and source tell scans apart."""

    def write(self, path: Path, seed: int) -> str:
        """An unpacked head: all have one size."""
        packed = write_head(path.with_suffix(".nii.gz"), seed)
        path.write_bytes(gzip.decompress(Path(packed).read_bytes()))
        Path(packed).unlink()
        return str(path)

    def anomaly(self, model: Model, path: str) -> np.ndarray:
        return predict_scan(model, items_of([path])[0].scan).anomaly

    def maps(self, out: Path) -> dict[str, np.ndarray]:
        return {
            json.loads(p.read_text())["source"]: np.asarray(
                nib.load(p.parent / "anomaly.nii.gz").dataobj
            )
            for p in out.glob("*/summary.json")
        }

    def test_two_of_one_name_and_size_in_turn(self, tmp_path: Path, model: Model) -> None:
        out = tmp_path / "out"
        paths = [self.write(tmp_path / f"{who}/T1.nii", k) for k, who in enumerate("ab")]
        assert len({os.stat(path).st_size for path in paths}) == 1
        for _ in range(2):
            for path in paths:
                (summary,) = predict_items(model, items_of([path]), str(out)).summaries
                assert summary["source"] == path
        assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["T1", "b_T1"]
        maps = self.maps(out)
        for path in paths:
            assert np.array_equal(maps[path], self.anomaly(model, path))
        names = [row.split("\t")[0] for row in (out / "predictions.tsv").read_text().splitlines()]
        assert sorted(names[1:]) == ["T1", "b_T1"]
        # Both in one call: each in its own place, as before.
        both = predict_items(model, items_of(paths), str(out))
        assert {s["source"] for s in both.summaries} == set(paths)
        for path, array in self.maps(out).items():
            assert np.array_equal(array, self.anomaly(model, path))

    def test_three_that_share_folders_too(self, tmp_path: Path, model: Model) -> None:
        paths = [self.write(tmp_path / f"{who}/x/y/T1.nii", k) for k, who in enumerate("abc")]
        for path in paths:
            predict_items(model, items_of([path]), str(tmp_path / "out"))
        assert set(self.maps(tmp_path / "out")) == set(paths)

    @pytest.mark.parametrize("keep_times", [False, True])
    def test_other_content_of_the_same_size(self, tmp_path, model, keep_times) -> None:
        path = self.write(tmp_path / "in/T1.nii", 1)
        before = os.stat(path)
        predict_items(model, items_of([path]), str(tmp_path / "out"))
        self.write(Path(path), 2)
        assert os.stat(path).st_size == before.st_size
        if keep_times:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        again = predict_items(model, items_of([path]), str(tmp_path / "out"))
        assert again.num_kept == 0
        (only_map,) = self.maps(tmp_path / "out").values()
        assert np.array_equal(only_map, self.anomaly(model, path))

    def test_a_touched_file_is_kept(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path))
        predict_items(model, items, str(tmp_path / "out"))
        os.utime(items[0].scan.image)
        assert predict_items(model, items, str(tmp_path / "out")).num_kept == 3

    def test_a_changed_brain_mask(self, tmp_path: Path, model: Model) -> None:
        path = write_head(tmp_path / "head.nii.gz", 1)
        image = nib.load(path)
        mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "m.nii")
        table = tmp_path / "scans.csv"
        table.write_text("image,brain\nhead.nii.gz,m.nii\n")
        out = str(tmp_path / "out")
        (first,) = predict_items(model, items_of([str(table)]), out).summaries
        mask[:, :, : mask.shape[2] // 2] = 0
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "m.nii")
        (second,) = predict_items(model, items_of([str(table)]), out).summaries
        assert second["brain_ml"] < 0.8 * first["brain_ml"]

    def test_read_in_another_way(self, tmp_path: Path, model: Model) -> None:
        path = write_head(tmp_path / "head.nii.gz", 1)
        table = tmp_path / "scans.csv"
        for column in ("", "LPS"):
            table.write_text(f"image,orientation\n{path},{column}\n")
            assert predict_items(model, items_of([str(table)]), str(tmp_path / "out")).num_kept == 0

    def test_a_summary_of_a_version_that_went_by_size(self, tmp_path, model) -> None:
        items = items_of(three(tmp_path))
        predict_items(model, items, str(tmp_path / "out"))
        place = tmp_path / "out/a_T1w/summary.json"
        summary = json.loads(place.read_text())
        del summary["source_digest"]
        place.write_text(
            json.dumps(summary | {"source_bytes": os.stat(items[0].scan.image).st_size})
        )
        assert predict_items(model, items, str(tmp_path / "out")).num_kept == 2

    def test_a_map_that_is_gone_is_made_again(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path))
        predict_items(model, items, str(tmp_path / "out"))
        (tmp_path / "out/b_T1w/proposal.nii.gz").unlink()
        assert predict_items(model, items, str(tmp_path / "out")).num_kept == 2
        assert (tmp_path / "out/b_T1w/proposal.nii.gz").exists()

    def test_moved_scans_keep_their_place(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path))
        predict_items(model, items, str(tmp_path / "out"))
        (tmp_path / "in").rename(tmp_path / "moved")
        moved = items_of(sorted(map(str, (tmp_path / "moved").iterdir())))
        done = predict_items(model, moved, str(tmp_path / "out"))
        assert done.num_kept == 0
        assert {s["source"] for s in done.summaries} == {item.scan.image for item in moved}
        assert len(self.maps(tmp_path / "out")) == 3

    def test_a_damaged_summary_is_nobodys(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        predict_items(model, items, str(tmp_path / "out"))
        kept = (tmp_path / "out/a_T1w/anomaly.nii.gz").read_bytes()
        (tmp_path / "out/a_T1w/summary.json").write_text("{")
        (summary,) = predict_items(model, items, str(tmp_path / "out")).summaries
        assert summary["folder"] == "in_a_T1w"
        assert (tmp_path / "out/a_T1w/anomaly.nii.gz").read_bytes() == kept

    def test_bids_names_of_two_sets(self, tmp_path: Path, model: Model) -> None:
        paths = [write_head(tmp_path / f"{s}/sub-1/anat/sub-1_T1w.nii.gz", k) for k, s in
                 enumerate("xy")]  # fmt: skip
        predict_items(model, items_of(paths[:1]), str(tmp_path / "out"))
        with pytest.raises(PredictError, match=rf"(?s){paths[0]}.*{paths[1]}.*another --out"):
            predict_items(model, items_of(paths[1:]), str(tmp_path / "out"))
        with pytest.raises(PredictError, match=r"would both be .*of their own"):
            items_of(paths)

    def test_the_interface_keeps_them_apart_too(self, tmp_path: Path, run: Run) -> None:
        paths = [self.write(tmp_path / f"{who}/T1.nii", k) for k, who in enumerate("ab")]
        for path in paths:
            uadray.predict(run, path, out=tmp_path / "out")
        assert set(self.maps(tmp_path / "out")) == set(paths)

    @pytest.mark.parametrize(
        "names",
        [
            ["患者一", "患者二", "Пациент", "Снимок", "Müller", "José", "אב", "मीरा"],
            [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")],
            ["Anna", "anna", "ANNA", "straße", "STRASSE"],
            ["a b", "a_b", "a:b", "a?b"],
            ["x" * 180, "x" * 181],
            [".", "..", "..."],
        ],
    )
    def test_names_in_any_script(self, tmp_path, model, names) -> None:
        paths = [self.write(tmp_path / "in" / f"{name}.nii", k) for k, name in enumerate(names)]
        items = items_of(paths)
        assert len({name_key(item.folder) for item in items}) == len(names)
        for item in items:
            assert unicodedata.is_normalized("NFC", item.name)
            assert "/" not in item.name
        if names[0] == "患者一":
            assert {item.name for item in items} == set(names)
        alone = tmp_path / "alone"
        for path in paths:
            predict_items(model, items_of([path]), str(alone))
        together = predict_items(model, items, str(tmp_path / "out"))
        assert {s["source"] for s in together.summaries} == set(paths)
        assert set(self.maps(alone)) == set(paths)

    def test_other_results_stay_in_the_tables(self, tmp_path: Path, model: Model) -> None:
        paths = three(tmp_path)
        Path(paths[0]).write_bytes(b"broken")
        out = tmp_path / "out"
        for path in paths:
            predict_items(model, items_of([path]), str(out))
        table = csv.DictReader((out / "predictions.tsv").open(), delimiter="\t")
        assert {row["name"]: row["status"] for row in table} == {
            "a_T1w": "quarantined",
            "b_T1w": "done",
            "c_T1w": "done",
        }
        assert [json.loads(line)["name"] for line in
                (out / "quarantine.jsonl").read_text().splitlines()] == ["a_T1w"]  # fmt: skip

    def test_two_that_are_named_alike_in_the_tables(self, tmp_path, model) -> None:
        """One of a BIDS tree and a plain file."""
        paths = [
            write_head(tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz", 1),
            write_head(tmp_path / "plain/sub-01.nii.gz", 2),
        ]
        for order in (paths, paths[::-1]):
            out = tmp_path / f"out{order == paths}"
            for path in order:
                pages = InProcess(model=model, out=str(out), config=PredictConfig(), viewer=True)
                predict_items(model, items_of([path]), str(out), engine=pages, viewer=True)
            table = list(csv.DictReader((out / "predictions.tsv").open(), delimiter="\t"))
            assert [row["name"] for row in table] == ["sub-01"] * 2
            sources = {json.loads((out / row["summary"]).read_text())["source"] for row in table}
            assert sources == set(paths)
            assert (out / "index.html").read_text().count('href="sub-01/') >= 2

    def test_a_scan_keeps_its_place_whatever_else_is_given(self, tmp_path, model) -> None:
        paths = [self.write(tmp_path / f"{who}/T1.nii", k) for k, who in enumerate("ab")]
        out = str(tmp_path / "out")
        predict_items(model, items_of(paths[1:]), out)
        done = predict_items(model, items_of(paths), out)
        assert done.num_kept == 1
        assert {s["source"]: s["folder"] for s in done.summaries} == {
            paths[0]: "a_T1",
            paths[1]: "T1",
        }
        assert predict_items(model, items_of(paths), out).num_kept == 2
        assert predict_items(model, items_of(paths[:1]), out).num_kept == 1
        table = list(csv.DictReader((tmp_path / "out/predictions.tsv").open(), delimiter="\t"))
        assert sorted(row["name"] for row in table) == ["T1", "a_T1"]

    def test_one_file_spelled_in_two_ways(self, tmp_path: Path, model: Model) -> None:
        path = three(tmp_path)[0]
        (tmp_path / "link").symlink_to(tmp_path / "in")
        predict_items(model, items_of([path]), str(tmp_path / "out"))
        for other in (f"{tmp_path}/in/../in/a_T1w.nii.gz", f"{tmp_path}/link/a_T1w.nii.gz"):
            assert predict_items(model, items_of([other]), str(tmp_path / "out")).num_kept == 1

    def test_a_page_of_an_earlier_content_goes(self, tmp_path: Path, run: Run) -> None:
        path = three(tmp_path)[0]
        uadray.predict_folder(run.url, path, tmp_path / "out")
        assert (tmp_path / "out/a_T1w/viewer.html").exists()
        write_head(Path(path), 9)
        uadray.predict_folder(run.url, path, tmp_path / "out", viewer=False)
        assert not (tmp_path / "out/a_T1w/viewer.html").exists()

    def test_results_of_an_earlier_content_are_in_no_table(self, tmp_path, model) -> None:
        paths = three(tmp_path)
        predict_items(model, items_of(paths[:1]), str(tmp_path / "out"))
        Path(paths[0]).write_bytes(b"broken")
        for path in paths:
            predict_items(model, items_of([path]), str(tmp_path / "out"))
        table = csv.DictReader((tmp_path / "out/predictions.tsv").open(), delimiter="\t")
        assert [row["name"] for row in table if row["status"] == "done"] == ["b_T1w", "c_T1w"]

    def test_what_is_left_of_an_earlier_content_is_said(self, tmp_path: Path, model: Model) -> None:
        path = three(tmp_path)[0]
        predict_items(model, items_of([path]), str(tmp_path / "out"))
        Path(path).write_bytes(b"broken")
        (failure,) = predict_items(model, items_of([path]), str(tmp_path / "out")).failures
        assert "of what was there before are still in a_T1w" in failure["reason"]


class TestQuarantine:
    def test_a_bad_scan_does_not_stop_the_others(self, tmp_path: Path, model: Model) -> None:
        paths = three(tmp_path)
        Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:900])
        done = predict_items(model, items_of(paths), str(tmp_path / "out"))
        assert [s["name"] for s in done.summaries] == ["a_T1w", "c_T1w"]
        (failure,) = done.failures
        assert failure["name"] == "b_T1w"
        assert "gzip is damaged" in failure["reason"]
        kept = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
        assert json.loads(kept[0]) == failure
        # Mended, it is done with the same command.
        write_head(Path(paths[1]), 1)
        assert not predict_items(model, items_of(paths), str(tmp_path / "out")).failures
        assert (tmp_path / "out/quarantine.jsonl").read_text() == ""

    def test_a_scan_that_kills_its_process_is_given_up(self, tmp_path, model, monkeypatch) -> None:
        items = items_of(three(tmp_path))
        out = str(tmp_path / "out")

        def die(opened: Model, scan: object, *args: object, **kwargs: object) -> None:
            raise SystemExit  # what comes after a kill never runs; this is as near as a test comes

        with monkeypatch.context() as patch:
            patch.setattr(folder_module, "predict_scan", die)
            patch.setattr("uadray.prediction.outputs.end", lambda out, item: None)
            for _ in range(3):
                with pytest.raises(SystemExit):
                    predict_items(model, items[:1], out)
        done = predict_items(model, items, out)
        assert "died 3 times" in done.failures[0]["reason"]
        assert len(done.summaries) == 2


class TestWhoseFolder:
    def test_another_run(self, tmp_path: Path, model: Model, cohort: Cohort) -> None:
        items = items_of(three(tmp_path)[:1])
        out = str(tmp_path / "out")
        predict_items(model, items, out)
        other = open_model(finished_run(tmp_path / "other", cohort, "MeanImage").url)
        with pytest.raises(PredictError, match=rf"of another run \(Intensity, {model.identity}\)"):
            predict_items(other, items, out, PredictConfig(map_only=True))

    def test_other_settings(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        out = str(tmp_path / "out")
        predict_items(model, items, out)
        with pytest.raises(PredictError, match=r"other settings \(threshold: 0.8 there, 0.5 here"):
            predict_items(model, items, out, PredictConfig(threshold=0.5))

    def test_other_scoring(self, tmp_path: Path, run: Run, cohort: Cohort) -> None:
        """Without a frozen threshold, too, the settings of the evaluation decide the maps."""
        items = items_of(three(tmp_path)[:1])
        mine = finished_run(tmp_path / "run", cohort, "Intensity")
        freeze_threshold(mine, 0.8)
        given = PredictConfig(threshold=0.5)
        for config in (given, PredictConfig(map_only=True)):
            out = str(tmp_path / f"out{config.map_only}")
            freeze_threshold(mine, 0.8)
            predict_items(open_model(mine.url), items, out, config)
            other = EvaluateConfig(postprocess=PostprocessConfig(median_size=3))
            freeze_threshold(mine, 0.8, config=other)
            with pytest.raises(PredictError, match=r"other settings \(.*scoring: "):
                predict_items(open_model(mine.url), items, out, config)

    def test_results_are_no_scans(self, tmp_path: Path, model: Model) -> None:
        paths = three(tmp_path)
        predict_items(model, items_of(paths), str(tmp_path / "out"))
        results = sorted(map(str, (tmp_path / "out").rglob("*.nii.gz")))
        listing = find_items([*paths, *results], "T1w")
        assert [item.scan.image for item in listing.items] == paths
        assert sorted(one.path for one in listing.left_out) == results
        with pytest.raises(NoScanFoundError, match="a result of uadray in"):
            find_items(results, "T1w")

    def test_something_else(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        with pytest.raises(PredictError, match=r"no predictions, holds scans, such as .*a_T1w"):
            predict_items(model, items, str(tmp_path))

    def test_inside_of_our_own_folders(self, tmp_path, model, run, cohort) -> None:
        items = items_of(three(tmp_path)[:1])
        before = {p: p.stat().st_mtime_ns for p in Path(run.url).rglob("*")}
        export_model(run.url, str(tmp_path / "model"), onnx=False)
        for kind, url in (
            ("a run", run.url),
            ("a cohort", cohort.url),
            ("a model", str(tmp_path / "model")),
        ):
            link = tmp_path / f"link{len(url)}"
            link.symlink_to(url)
            for place in (url, f"{url}/predicted", f"{url}/a/b", f"{link}/predicted"):
                with pytest.raises(PredictError, match=rf"lies in {kind}.*another --out") as error:
                    predict_items(model, items, place)
                assert "remove" not in str(error.value)
        assert {p: p.stat().st_mtime_ns for p in Path(run.url).rglob("*")} == before

    def test_a_damaged_marker(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        predict_items(model, items, str(tmp_path / "out"))
        for content in ("{", "[]", '{"request": null}'):
            (tmp_path / "out/predict.json").write_text(content)
            with pytest.raises(PredictError, match=r"predict.json is damaged .*another --out") as e:
                predict_items(model, items, str(tmp_path / "out"))
            assert "remove" not in str(e.value)

    def test_a_target_that_cannot_be_written(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        (tmp_path / "file").write_text("")
        with pytest.raises(PredictError, match=r"is a file or leads nowhere: choose another --out"):
            predict_items(model, items, str(tmp_path / "file/out"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_without_permission(self, tmp_path: Path, model: Model) -> None:
        items = items_of(three(tmp_path)[:1])
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(PredictError, match="cannot be written there"):
            predict_items(model, items, str(tmp_path / "closed/out"))

    def test_a_disk_that_becomes_full(self, tmp_path, model, monkeypatch) -> None:
        items = items_of(three(tmp_path))
        write = files.write_bytes

        def full(url: str, content: bytes) -> None:
            if url.endswith("b_T1w/anomaly.nii.gz"):
                raise OSError(28, "No space left on device")
            write(url, content)

        monkeypatch.setattr("uadray.files.write_bytes", full)
        with pytest.raises(PredictError, match=r"No space left.*what is done is kept"):
            predict_items(model, items, str(tmp_path / "out"))


class TestNames:
    def test_bids(self, tmp_path: Path, model: Model) -> None:
        root = tmp_path / "set"
        for stem in ("sub-01/ses-a/anat/sub-01_ses-a_T1w", "sub-02/anat/sub-02_T1w"):
            write_head(root / f"{stem}.nii.gz", len(stem))
        write_head(root / "sub-02/anat/sub-02_FLAIR.nii.gz", 1)
        listing = find_items([str(root)], "T1w")
        out = tmp_path / "out"
        done = predict_items(model, listing.items, str(out))
        assert [s["name"] for s in done.summaries] == ["sub-01_ses-a", "sub-02"]
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*.nii.gz")) == [
            "sub-01/ses-a/anat/sub-01_ses-a_desc-anomaly_mask.nii.gz",
            "sub-01/ses-a/anat/sub-01_ses-a_desc-anomaly_probseg.nii.gz",
            "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
            "sub-02/anat/sub-02_desc-anomaly_mask.nii.gz",
            "sub-02/anat/sub-02_desc-anomaly_probseg.nii.gz",
            "sub-02/anat/sub-02_desc-brain_mask.nii.gz",
        ]
        described = json.loads((out / "dataset_description.json").read_text())
        assert described["DatasetType"] == "derivative"
        assert described["GeneratedBy"][0]["Name"] == "uadray"
        # A file of the tree alone gets the same names.
        (item,) = items_of([str(root / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")])
        assert item.summary == listing.items[0].summary

    def test_a_reconstruction_is_named_by_its_contrast(self, tmp_path, cohort) -> None:
        path = write_head(tmp_path / "sub-7/anat/sub-7_T1w.nii.gz")
        mean = open_model(finished_run(tmp_path / "run", cohort, "MeanImage").url)
        (out,) = predict_items(
            mean, items_of([path]), str(tmp_path / "out"), PredictConfig(map_only=True)
        ).summaries
        assert out["files"] == {
            "anomaly": "sub-7_desc-anomaly_probseg.nii.gz",
            "reconstruction": "sub-7_desc-healthy_T1w.nii.gz",
            "brain_mask": "sub-7_desc-brain_mask.nii.gz",
            "scan": path,
        }

    def test_files_of_one_name(self, tmp_path: Path) -> None:
        paths = [write_head(tmp_path / f"{who}/T1.nii.gz") for who in ("p1", "p2")]
        assert [item.name for item in items_of([*paths, paths[0]])] == ["p1_T1", "p2_T1"]

    def test_a_plain_folder_leaves_masks_and_others_out(self, tmp_path: Path) -> None:
        for name in ("one", "two_T1", "one_mask", "two_FLAIR", "lesion", "two_gt"):
            write_head(tmp_path / f"{name}.nii.gz")
        listing = find_items([str(tmp_path)], "T1w")
        assert [item.name for item in listing.items] == ["one", "two_T1"]
        assert {Path(one.path).name: one.reason for one in listing.left_out} == {
            "lesion.nii.gz": "named as a mask (lesion)",
            "one_mask.nii.gz": "named as a mask (mask)",
            "two_FLAIR.nii.gz": "named as FLAIR, not T1w",
            "two_gt.nii.gz": "named as a mask (gt)",
        }

    def test_a_table_brings_masks(self, tmp_path: Path, model: Model) -> None:
        path = Path(write_head(tmp_path / "head.nii.gz"))
        image = nib.load(path)
        voxels = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image((voxels > 0).astype(np.uint8), image.affine), tmp_path / "m.nii")
        nib.save(nib.Nifti1Image(voxels + 30, image.affine), path)
        truth = np.zeros(image.shape, np.uint8)
        truth[13:16, 13:16, 13:16] = 1
        nib.save(nib.Nifti1Image(truth, image.affine), tmp_path / "l.nii")
        table = tmp_path / "scans.csv"
        table.write_text("image,id,brain,lesion\nhead.nii.gz,x,m.nii,l.nii\n")
        (summary,) = predict_items(model, items_of([str(table)]), str(tmp_path / "out")).summaries
        mask = nib.load(tmp_path / "out/x/brain_mask.nii.gz")
        assert ((np.asarray(mask.dataobj) > 0) == (voxels > 0)).mean() > 0.99
        assert summary["truth"]["volume_ml"] == pytest.approx(27 * 1e-3)

    def test_a_mask_that_is_not_there(self, tmp_path: Path, run: Run) -> None:
        job = PredictJob(
            model=run.url, scans=(three(tmp_path)[0],), out=str(tmp_path / "out"), brain="no.nii"
        )
        with pytest.raises(PredictError, match=r"no\.nii: no such file; --brain is"):
            job.run()
        assert not (tmp_path / "out").exists()

    def test_a_mask_of_one_scan(self, tmp_path: Path, model: Model) -> None:
        with pytest.raises(PredictError, match="mask of one scan, but 3 were given"):
            find_items(three(tmp_path), "T1w", brain="mask.nii.gz")

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(NoScanFoundError, match="no such file or folder"):
            find_items([str(tmp_path / "no")], "T1w")
        with pytest.raises(NoScanFoundError, match="no file there ends in"):
            find_items([str(tmp_path)], "T1w")
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(NoScanFoundError, match="expected a NIfTI file"):
            find_items([str(tmp_path / "notes.txt")], "T1w")


def test_results_on_an_object_store(tmp_path: Path, model: Model) -> None:
    items = items_of(three(tmp_path)[:1])
    done = predict_items(model, items, "memory://predicted")
    assert files.exists("memory://predicted/a_T1w/anomaly.nii.gz")
    assert predict_items(model, items, "memory://predicted").num_kept == 1
    assert done.summaries[0]["files"]["anomaly"] == "anomaly.nii.gz"


def test_pages_and_their_index(tmp_path: Path, run: Run) -> None:
    paths = three(tmp_path)[:2]
    job = PredictJob(model=run.url, scans=tuple(paths), out=str(tmp_path / "out"))
    done = job.run()
    assert done.index == str(tmp_path / "out/index.html")
    for summary in done.summaries:
        page = tmp_path / "out" / summary["name"] / summary["page"]["name"]
        assert page.stat().st_size == summary["page"]["bytes"]
        assert f"{summary['name']}/viewer.html" in Path(done.index).read_text()
    # Made from what is kept, the index is the same.
    Path(done.index).unlink()
    again = job.run()
    assert again.num_kept == 2
    assert "a_T1w/viewer.html" in Path(again.index).read_text()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ScanError("bad"), "^bad$"),
        (MemoryError(), "b_T1w.nii.gz: does not fit in memory"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (EvaluationError("scores are NaN"), "b_T1w.nii.gz: scores are NaN"),
        (IndexError("of a reader"), "IndexError: of a reader"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_whatever_goes_wrong_with_one_scan_is_its_own(
    tmp_path, model, monkeypatch, error, reason
) -> None:
    items = items_of(three(tmp_path))
    predict = folder_module.predict_scan

    def failing(opened: Model, scan: Scan, *args: Any, **kwargs: Any) -> Prediction:
        if scan.id == "b_T1w":
            raise error
        return predict(opened, scan, *args, **kwargs)

    monkeypatch.setattr(folder_module, "predict_scan", failing)
    done = predict_items(model, items, str(tmp_path / "out"))
    assert [s["name"] for s in done.summaries] == ["a_T1w", "c_T1w"]
    assert re.search(reason, done.failures[0]["reason"])


def test_what_cannot_be_written_of_one_scan_is_its_own(tmp_path, model, monkeypatch) -> None:
    encode = outputs.encode

    def failing(array: np.ndarray, grid: Any, description: str) -> bytes:
        if array.dtype == bool and grid.shape[0] > 40:
            raise ValueError("no such header")
        return encode(array, grid, description)

    paths = three(tmp_path)
    write_head(Path(paths[1]), 1, sizes=(0.6, 1.0, 1.0))
    monkeypatch.setattr(outputs, "encode", failing)
    done = predict_items(model, items_of(paths), str(tmp_path / "out"))
    assert [f["name"] for f in done.failures] == ["b_T1w"]
    assert "ValueError: no such header" in done.failures[0]["reason"]
    assert len(done.summaries) == 2


def test_a_scan_that_is_named_twice_keeps_its_mask(tmp_path: Path) -> None:
    """By a table with its brain mask and by its folder, in any order and spelling."""
    scan = write_head(tmp_path / "in/a_T1w.nii.gz", 1)
    (tmp_path / "mask.nii.gz").write_bytes(Path(scan).read_bytes())
    (tmp_path / "t.csv").write_text("id,image,brain\none,in/a_T1w.nii.gz,mask.nii.gz\n")
    table, folder = str(tmp_path / "t.csv"), f"{tmp_path}/in/../in"
    for given in ([table, folder], [folder, table]):
        (item,) = find_items(given, "T1w").items
        assert item.scan.brain == str(tmp_path / "mask.nii.gz")
        assert item.name == "one"
