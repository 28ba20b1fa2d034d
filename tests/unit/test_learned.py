"""Run and cohort are compared: modality, preparation and people; ids alone prove nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_cohorts import AFFINE, SHAPE, tiny_vae

from uadray import files
from uadray.config import experiment, with_fit
from uadray.errors import EvaluationError, RunError, StoreError
from uadray.evaluation.inputs import compare, refuse
from uadray.preparation.settings import Extent, PrepareConfig
from uadray.preparation.steps import record
from uadray.runs.folder import Run
from uadray.runs.learned import PEOPLE, Match, compare_cohorts, data_set
from uadray.store import Cohort, CohortWriter, Split, Subject

CONFIG = PrepareConfig()


def scan(source: str, subject: str, *, content: str = "", **change: object) -> dict[str, object]:
    return {
        "id": change.pop("id", source.rsplit("/", 1)[-1]),
        "subject": subject,
        "source": source,
        "image_digest": content,
    } | change


def write(
    url: Path,
    scans: Sequence[dict[str, object]],
    splits: Sequence[Split],
    *,
    config: PrepareConfig | None = CONFIG,
    modality: str = "T1w",
    affine: tuple[tuple[float, ...], ...] = AFFINE,
) -> Cohort:
    lesions = splits[0] in ("threshold", "test")
    plan = {} if config is None else {"steps": record(config, lesions=False)}
    writer = CohortWriter.create(
        str(url), num_rows=len(scans), shape=SHAPE, has_lesion=lesions, plan=plan
    )
    brain = np.ones((len(scans), *SHAPE), bool)
    subjects = [
        Subject(
            row=row, scanner="", split=split, modality=modality, affine=affine, brain_ml=1.0,
            lesion_ml=float(lesions), **one,  # type: ignore[arg-type]
        )
        for row, (one, split) in enumerate(zip(scans, splits, strict=True))
    ]  # fmt: skip
    for shard in range(writer.num_shards):
        rows = writer.rows_of(shard)
        part = brain[: len(rows)]
        writer.write_shard(
            shard, image=part * 0.5, brain=part, lesion=part if lesions else None,
            subjects=[s for s in subjects if s.row in rows], failures=[],
        )  # fmt: skip
    return writer.seal()


SPLITS: list[Split] = ["train", "train", "validation"]
TESTED: list[Split] = ["threshold", "test"]


def healthy(url: Path, root: str = "/data/ds1", **how: object) -> Cohort:
    scans = [
        scan(f"{root}/sub-{k:02d}/anat/T1w.nii", f"sub-{k:02d}", content=f"h{k}", id=f"h{k}")
        for k in (1, 2, 3)
    ]
    return write(url / "healthy.zarr", scans, SPLITS, **how)  # type: ignore[arg-type]


def lesioned(url: Path, scans: Sequence[dict[str, object]] = (), **how: object) -> Cohort:
    scans = scans or [scan(f"/data/ds2/p{k}/T1w.nii", f"p{k}", content=f"t{k}") for k in (1, 2)]
    return write(url / "stroke.zarr", scans, TESTED, **how)  # type: ignore[arg-type]


def match(there: Cohort, here: Cohort, tmp_path: Path, name: str = "MeanImage") -> Match:
    """Of a run that records what it learned from, and whose cohort is gone."""
    run = Run.create(str(tmp_path / "run"), experiment(name), there)
    files.remove(there.url)
    return compare(run, here)


def test_what_goes_together_passes(tmp_path: Path) -> None:
    matched = match(healthy(tmp_path), lesioned(tmp_path), tmp_path)
    assert matched == Match()
    refuse(matched, "run", "cohort", insist=False)


class TestPreparation:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"percentiles": (5.0, 80.0)}, "percentiles 1.0 to 99.0 in the fit, 5.0 to 80.0 here"),
            ({"denoise": False}, "denoise only in the fit"),
            ({"denoise_iterations": 5}, "denoise iterations 3 in the fit, 5 here"),
            ({"correct_bias": True}, "correct bias only in the cohort"),
            ({"register": "mni152"}, "pad to extent only in the fit; register only in the cohort"),
            ({"spacing_mm": 2.0}, "spacing mm 1.0 in the fit, 2.0 here"),
            ({"extent": Extent(left_right=200)}, "left-right .* in the fit, .*left-right 200"),
            ({"shape": (32, 32, 32)}, "downsample shape 64 x 64 x 64 in the fit, 32 x 32"),
        ],
    )
    def test_another_one_is_refused(
        self, tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        here = lesioned(tmp_path, config=replace(CONFIG, **change))  # type: ignore[arg-type]
        matched = match(healthy(tmp_path), here, tmp_path)
        with pytest.raises(EvaluationError, match=rf"prepared otherwise: .*{message}.*--allow-mis"):
            refuse(matched, "run", here.url, insist=False)
        refuse(matched, "run", here.url, insist=True)
        assert any("prepared otherwise" in mark for mark in matched.marks)

    @pytest.mark.parametrize(
        "change",
        [
            {"min_brain_ml": 1.0},
            {"max_cut": 0.5},
            {"grow_extent": True},
            {"skull_strip": "none"},
            {"mask_threshold": 0.9},
        ],
    )
    def test_what_decides_which_scans_are_accepted_is_no_difference(
        self, tmp_path: Path, change: dict[str, object]
    ) -> None:
        here = lesioned(tmp_path, config=replace(CONFIG, **change))  # type: ignore[arg-type]
        assert match(healthy(tmp_path), here, tmp_path) == Match()

    def test_another_grid_is_refused(self, tmp_path: Path) -> None:
        coarse = tuple(tuple(row) for row in np.diag([2.5, 2.5, 2.5, 1.0]).tolist())
        matched = match(healthy(tmp_path), lesioned(tmp_path, affine=coarse), tmp_path)
        assert matched.differences == (
            "fitted on voxels of 4.00 x 4.00 x 4.00 mm, tested on 2.50 x 2.50 x 2.50 mm",
        )

    def test_one_that_is_not_recorded_is_said(self, tmp_path: Path) -> None:
        matched = match(healthy(tmp_path, config=None), lesioned(tmp_path), tmp_path)
        assert matched.differences == ()
        assert "steps of the preparation are not recorded, so not compared" in matched.notes


class TestModality:
    def test_another_one_is_refused(self, tmp_path: Path) -> None:
        here = lesioned(tmp_path, modality="FLAIR")
        matched = match(healthy(tmp_path), here, tmp_path)
        assert matched.marks == ["fitted on T1w, tested on FLAIR"]
        with pytest.raises(EvaluationError, match="fitted on T1w, tested on FLAIR"):
            refuse(matched, "run", here.url, insist=False)

    def test_one_that_is_not_recorded_is_said(self, tmp_path: Path) -> None:
        matched = match(healthy(tmp_path), lesioned(tmp_path, modality=""), tmp_path)
        assert matched.differences == ()
        assert "a modality is not recorded, so not compared" in matched.notes

    def test_does_not_matter_to_a_method_that_learns_nothing(self, tmp_path: Path) -> None:
        here = lesioned(tmp_path, modality="FLAIR")
        assert match(healthy(tmp_path), here, tmp_path, "HistEq") == Match()


class TestPeople:
    def compare(self, tmp_path: Path, one: dict[str, object]) -> Match:
        there = healthy(tmp_path)
        own = scan("/data/ds2/p9/T1w.nii", "p9", content="t9")
        return match(there, lesioned(tmp_path, [own, one]), tmp_path)

    @pytest.mark.parametrize("content", ["h1", "h3"])
    def test_the_same_scan_is_refused_whatever_it_is_called(
        self, tmp_path: Path, content: str
    ) -> None:
        matched = self.compare(tmp_path, scan("/x/y.nii", "other", content=content))
        assert matched.seen == ("y.nii",)
        for insist in (False, True):
            with pytest.raises(EvaluationError, match=r"scans that run was learned from.*y\.nii"):
                refuse(matched, "run", "cohort", insist=insist)

    def test_the_same_file_is_refused_where_contents_are_not_recorded(self, tmp_path: Path) -> None:
        matched = self.compare(tmp_path, scan("/data/ds1/sub-01/anat/T1w.nii", "x"))
        assert matched.seen == ("T1w.nii",)

    def test_a_file_that_was_replaced_is_another_scan(self, tmp_path: Path) -> None:
        matched = self.compare(tmp_path, scan("/data/ds1/sub-01/anat/T1w.nii", "x", content="new"))
        assert matched.seen == ()

    def test_another_scan_of_the_same_person_is_refused(self, tmp_path: Path) -> None:
        one = scan("/data/ds1/sub-01/ses-2/anat/T1w.nii", "sub-01", content="later")
        matched = self.compare(tmp_path, one)
        assert (matched.seen, matched.likely) == ((), ("T1w.nii",))
        with pytest.raises(EvaluationError, match=r"people whom run was learned from.*T1w\.nii"):
            refuse(matched, "run", "cohort", insist=False)
        refuse(matched, "run", "cohort", insist=True)
        assert matched.marks == ["1 of its scans may be of people learned from"]

    def test_a_common_id_in_another_data_set_is_another_person(self, tmp_path: Path) -> None:
        one = scan("/data/ds2/sub-01/anat/T1w.nii", "sub-01", content="t1")
        matched = self.compare(tmp_path, one)
        assert (matched.seen, matched.likely) == ((), ())
        assert "1 subject ids (sub-01) also occur in the cohort of the fit" in matched.notes[0]

    def test_an_id_of_its_own_is_the_same_person_anywhere(self, tmp_path: Path) -> None:
        there = write(
            tmp_path / "healthy.zarr",
            [scan(f"/a/IXI{k}-Guys.nii", f"IXI{k}-Guys", content=f"h{k}") for k in (2, 12, 13)],
            SPLITS,
        )
        here = lesioned(
            tmp_path,
            [scan(f"/b/IXI{k}-Guys.nii", f"IXI{k}-Guys", content=f"t{k}") for k in (13, 14)],
        )
        assert match(there, here, tmp_path).likely == ("IXI13-Guys.nii",)

    def test_people_held_out_of_the_same_data_set_pass(self, tmp_path: Path) -> None:
        one = scan("/data/ds1/sub-07/anat/T1w.nii", "sub-07", content="h7")
        assert self.compare(tmp_path, one) == Match()

    def test_phantoms_of_their_own_kind_pass(self, tmp_path: Path) -> None:
        there = write(
            tmp_path / "healthy.zarr",
            [scan(f"phantom://healthy/{k}", f"healthy-{k:05d}") for k in range(3)],
            SPLITS,
        )
        here = lesioned(
            tmp_path, [scan(f"phantom://stroke/{k}", f"stroke-{k:05d}") for k in range(2)]
        )
        assert match(there, here, tmp_path) == Match()

    def test_those_outside_the_share_that_was_learned_from_pass(self, tmp_path: Path) -> None:
        scans = [scan(f"/d/q{k}/T1w.nii", f"q{k}", content=f"c{k}") for k in range(11)]
        splits: list[Split] = ["train"] * 10 + ["validation"]
        there = write(tmp_path / "healthy.zarr", scans, splits)
        few = with_fit(experiment("MeanImage"), data_share=0.1)
        run = Run.create(str(tmp_path / "run"), few, there)
        here = write(tmp_path / "test.zarr", scans[:10], ["threshold"] * 5 + ["test"] * 5)
        assert len(compare(run, here).seen) == 1

    def test_a_run_that_recorded_nothing_asks_its_cohort(self, tmp_path: Path) -> None:
        there = healthy(tmp_path)
        run = Run.create(str(tmp_path / "run"), tiny_vae(3), there)
        files.remove(files.join(run.url, PEOPLE))
        place = files.join(run.url, "config.json")
        config = files.read_json(place)
        del config["cohort"]["origin"]
        files.write_json(place, config)
        here = lesioned(
            tmp_path, [scan("/x.nii", "a", content="h1"), scan("/y.nii", "b", content="z")],
            modality="FLAIR",
        )  # fmt: skip
        matched = compare(run, here)
        assert matched.seen == ("x.nii",)
        assert matched.differences
        files.remove(there.url)
        gone = compare(run, here)
        assert (gone.seen, gone.differences) == ((), ())
        assert len(gone.notes) == 2
        assert all("not recorded" in note for note in gone.notes)

    def test_a_damaged_record_is_named(self, tmp_path: Path) -> None:
        run = Run.create(str(tmp_path / "run"), tiny_vae(3), healthy(tmp_path))
        Path(run.url, PEOPLE).write_bytes(b"PK")
        with pytest.raises(RunError, match=r"people\.npz is damaged"):
            compare(run, lesioned(tmp_path))


def test_a_cohort_without_digests_is_compared_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""
    there = healthy(tmp_path)
    here = lesioned(tmp_path, [scan("/data/ds1/sub-01/anat/T1w.nii", "a"), scan("/y.nii", "b")])
    whole = Cohort.columns

    def columns(self: Cohort, *names: str) -> object:
        if "image_digest" in names:
            raise StoreError("no such column")
        return whole(self, *names)

    monkeypatch.setattr(Cohort, "columns", columns)
    matched = compare_cohorts(there, here)
    assert matched.seen == ("T1w.nii",)
    assert any("contents of scans are not recorded" in note for note in matched.notes)


def test_cohorts_are_compared_before_a_fit(tmp_path: Path) -> None:
    there = healthy(tmp_path)
    here = lesioned(tmp_path, [scan("/x.nii", "a", content="h1"), scan("/y.nii", "b", content="z")])
    assert compare_cohorts(there, here).seen == ("x.nii",)


@pytest.mark.parametrize(
    ("source", "subject", "expected"),
    [
        ("/data/ds1/sub-01/anat/a.nii", "sub-01", "/data/ds1"),
        ("/data/ixi/IXI002-Guys.nii.gz", "IXI002", "/data/ixi"),
        ("s3://bucket/ds1/sub-01/a.nii", "sub-01", "s3://bucket/ds1"),
        ("phantom://healthy/3", "healthy-00003", "phantom://healthy"),
    ],
)
def test_the_folder_of_a_data_set(source: str, subject: str, expected: str) -> None:
    assert data_set(source, subject) == expected
