"""Anomaly maps of other software: whose they are, where they lie, and what cannot be used."""

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import nibabel as nib
import numpy as np
import pytest
from map_cohorts import IDS, score, write_lesioned, write_maps
from scipy import ndimage
from tiny_models import grid

from tests.s3_server import serve_bucket
from uadray import files
from uadray.config import Experiment, from_json, to_json
from uadray.errors import (
    CheckpointError,
    ConfigError,
    EvaluationError,
    NoScanFoundError,
    RunError,
    ScanError,
    TooManyFailuresError,
)
from uadray.evaluation.inputs import compare
from uadray.evaluation.map_files import find_maps
from uadray.evaluation.map_grid import on_grid
from uadray.evaluation.maps import Brought, bring_maps
from uadray.evaluation.maps_settings import MapsConfig
from uadray.prediction.model import model_of_run
from uadray.preparation.geometry import to_scanner
from uadray.preparation.nifti import read_image
from uadray.runs.checkpoint import weights_digest
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.maps import MapStore
from uadray.runs.records import load_runs
from uadray.store import Cohort


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_lesioned(tmp_path_factory.mktemp("cohort"))


def bring(cohort: Cohort, maps: Path | str, out: Path, **config: Any) -> Brought:
    chosen = MapsConfig(**config)
    return bring_maps(str(maps), cohort, str(out), name="Theirs", config=chosen)


def kept(brought: Brought, name: str) -> np.ndarray:
    return load_detector(brought.run).of([name])[0]  # type: ignore[attr-defined]


def expected(cohort: Cohort, name: str) -> np.ndarray:
    """The map's formula at the centres of the cohort's voxels."""
    line = cohort.subjects.set_index("id").loc[name]
    x, y, z = cohort.shape[::-1]
    values = score(np.array(line["affine"]), (x, y, z), IDS.index(name)).T
    return np.where(brain_of(cohort, name), values, 0)


def brain_of(cohort: Cohort, name: str) -> np.ndarray:
    row = int(cohort.subjects.set_index("id").loc[name]["row"])
    return cohort.read("brain", row, row + 1)[0].astype(bool)


def reasons(brought: Brought) -> dict[str, str]:
    return {one.id: one.reason for one in brought.absent}


class TestOwners:
    """Whose a file is, by its path."""

    @pytest.mark.parametrize(
        ("name", "owner"),
        [
            ("sub-01.nii.gz", "sub-01"),
            ("SUB-01_T1w_anomaly.NII", "sub-01"),
            ("map.sub-01.nii", "sub-01"),
            ("sub-01/anomaly.nii.gz", "sub-01"),
            ("all/sub-01/ses-2/out.nii.gz", "sub-01_ses-2"),
            ("sub-01_ses-2/out.nii.gz", "sub-01_ses-2"),
            ("sub-01/ses-2/sub-01_map.nii.gz", "sub-01_ses-2"),
            ("sub-01_ses-2_desc-x_map.nii.gz", "sub-01_ses-2"),
            ("sub-02_map.nii.gz", "sub-02_ses-1"),
            ("sub-02_ses-1_map.nii.gz", "sub-02_ses-1"),
            ("sub-03/sub-01_map.nii.gz", "sub-01"),
            ("Müller_score.nii.gz", "Mu\u0308ller"),
            ("患者七.nii.gz", "患者七"),
        ],
    )
    def test_it_is_known(self, tmp_path: Path, name: str, owner: str) -> None:
        ids = ["sub-01", "sub-01_ses-2", "sub-02_ses-1", "sub-03", "Mu\u0308ller", "患者七"]
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        assert find_maps(str(tmp_path), ids).by_id == {owner: (str(tmp_path / name),)}

    @pytest.mark.parametrize(
        "name", ["sub-011.nii", "xsub-01.nii", "sub-02_ses-3.nii", "sub-04.nii", "sub-05_map.nii"]
    )
    def test_it_is_of_nobody(self, tmp_path: Path, name: str) -> None:
        ids = ["sub-01", "sub-02_ses-1", "sub-05_ses-1", "sub-05_ses-2", "right"]
        for one in (name, "right.nii"):
            (tmp_path / one).write_bytes(b"")
        found = find_maps(str(tmp_path), ids)
        assert set(found.by_id) == {"right"}
        assert [one.path for one in found.left_out] == [str(tmp_path / name)]
        with pytest.raises(NoScanFoundError, match=r"none of 1 images, such as .*a table"):
            find_maps(str(tmp_path), ids, pattern=name)

    def test_two_that_it_may_be_of_are_named(self, tmp_path: Path) -> None:
        for one in ("a1_b2.nii", "a1.nii"):
            (tmp_path / one).write_bytes(b"")
        (left_out,) = find_maps(str(tmp_path), ["a1", "b2"]).left_out
        assert left_out.reason == "of a1 or b2 by its name; name the maps in a table"

    @pytest.mark.parametrize(
        ("name", "owners"),
        [
            ("sub-01_to_template-long.nii", "sub-01 or template-long"),
            ("sub-01_ses-2_from_sub-01.nii", "sub-01 or sub-01_ses-2"),
            ("12_run-3.nii", "12 or 3"),
            ("2024-05_12.nii", "12 or 2024 or 05"),
            ("sub-01_12.nii", "sub-01 or 12"),
        ],
    )
    def test_a_longer_id_elsewhere_in_the_name_decides_nothing(
        self, tmp_path: Path, name: str, owners: str
    ) -> None:
        for one in (name, "right.nii"):
            (tmp_path / one).write_bytes(b"")
        ids = ["sub-01", "sub-01_ses-2", "template-long", "12", "right"]
        (left_out,) = find_maps(str(tmp_path), ids).left_out
        assert left_out.reason == f"of {owners} by its name; name the maps in a table"

    @pytest.mark.parametrize("name", ["12.nii", "map_12_T1w.nii", "12/run-3.nii", "12/12_map.nii"])
    def test_an_id_of_digits_that_is_the_only_number(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        assert set(find_maps(str(tmp_path), ["12", "14"]).by_id) == {"12"}

    def test_an_empty_folder_and_none(self, tmp_path: Path) -> None:
        with pytest.raises(NoScanFoundError, match=r"no file there ends in \.nii"):
            find_maps(str(tmp_path), IDS)
        with pytest.raises(NoScanFoundError, match="no such folder"):
            find_maps(str(tmp_path / "none"), IDS)

    @pytest.mark.parametrize(("name", "separator"), [("maps.csv", ","), ("maps.tsv", "\t")])
    def test_a_table(self, tmp_path: Path, name: str, separator: str) -> None:
        rows = [("id", "path"), ("sub-01", "a.nii"), ("sub-02", "/b/c.nii"), ("else", "d.nii")]
        text = "\n".join(separator.join(row) for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-16" if separator == "\t" else "utf-8")
        found = find_maps(str(tmp_path / name), IDS)
        assert found.by_id == {"sub-01": (str(tmp_path / "a.nii"),), "sub-02": ("/b/c.nii",)}
        assert [one.reason for one in found.left_out] == ["of else, which is no id of the cohort"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("image,id\na,b\n", "expected the columns id and path, but it has image, id"),
            ("id,path\nx,y\n", "none of its 1 rows has the id of a scan of the cohort"),
            ("", "cannot be read"),
        ],
    )
    def test_a_wrong_table(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "maps.csv").write_text(text)
        with pytest.raises(NoScanFoundError, match=message):
            find_maps(str(tmp_path / "maps.csv"), IDS)


def without_gzip(folder: Path) -> None:
    for path in list(folder.glob("*.nii.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def in_integers(image: nib.Nifti1Image) -> nib.Nifti1Image:
    scaled = nib.Nifti1Image(image.get_fdata().astype(np.float32), image.affine)
    scaled.set_data_dtype(np.int16)
    return scaled


def one_frame(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(image.get_fdata()[..., None].astype(np.float32), image.affine)


def nan_outside(image: nib.Nifti1Image) -> nib.Nifti1Image:
    values = image.get_fdata().astype(np.float32)
    return nib.Nifti1Image(np.where(values == 0, np.float32(np.nan), values), image.affine)


def without_place(image: nib.Nifti1Image) -> nib.Nifti1Image:
    bare = nib.Nifti1Image(image.get_fdata().astype(np.float32), None)
    bare.header.set_sform(np.eye(4), 0)
    bare.header.set_qform(np.eye(4), 0)
    return bare


class TestGrid:
    """A map means the same on every grid and in every kind of file."""

    def check(self, cohort: Cohort, brought: Brought, within: float = 0.05) -> None:
        assert not brought.absent, reasons(brought)
        for name in (IDS[0], IDS[-1]):
            brain = brain_of(cohort, name)
            error = np.abs(kept(brought, name) - expected(cohort, name))[brain]
            assert np.median(error) < within / 5
            # At the rim the map itself ends.
            assert np.quantile(error, 0.95) < within

    @pytest.mark.parametrize(
        "where",
        [
            {},
            {"signs": (-1, -1, 1)},
            {"order": (2, 0, 1), "signs": (1, -1, -1)},
            {"sizes": (0.7, 0.7, 1.5)},
            {"sizes": (2.0, 2.0, 2.0)},
            {"degrees": 25.0, "sizes": (1.1, 1.0, 0.9)},
        ],
        ids=["as the scan", "LPS", "permuted", "finer", "coarser", "oblique"],
    )
    def test_other_grids(self, cohort: Cohort, tmp_path: Path, where: dict[str, Any]) -> None:
        maps = write_maps(tmp_path / "maps", **where)
        self.check(cohort, bring(cohort, maps, tmp_path / "run"), 0.08 if where else 0.05)

    def test_elsewhere_on_as_many_voxels_if_the_user_insists(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        maps = write_maps(tmp_path / "maps", degrees=25.0)
        with pytest.raises(TooManyFailuresError, match="pass --by-affine if it is right"):
            bring(cohort, maps, tmp_path / "run")
        self.check(cohort, bring(cohort, maps, tmp_path / "run", by_affine=True), 0.08)

    @pytest.mark.parametrize("change", [in_integers, one_frame, nan_outside, without_place])
    def test_other_files(self, cohort: Cohort, tmp_path: Path, change: Any) -> None:
        maps = write_maps(tmp_path / "maps", change=change)
        self.check(cohort, bring(cohort, maps, tmp_path / "run"))

    def test_orientation_alone_changes_no_bit(self, cohort: Cohort, tmp_path: Path) -> None:
        plain = bring(cohort, write_maps(tmp_path / "a"), tmp_path / "run-a")
        turned = write_maps(tmp_path / "b", order=(1, 0, 2), signs=(-1, 1, -1))
        other = bring(cohort, turned, tmp_path / "run-b")
        assert np.allclose(kept(plain, IDS[3]), kept(other, IDS[3]), atol=1e-6)

    def test_linear_sampling_undoes_a_linear_interpolation(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        """As of the maps that are predicted on finer grids; an average blurs them once more."""
        (tmp_path / "maps").mkdir()
        affine, shape = grid(sizes=(0.5, 0.5, 0.5))
        made = {}
        for line in cohort.subjects.itertuples():
            made[line.id] = np.random.default_rng(line.row).random(cohort.shape)
            fine = to_scanner(made[line.id], np.array(line.affine), affine, shape)
            nib.save(nib.Nifti1Image(fine, affine), tmp_path / f"maps/{line.id}.nii.gz")
        inner = ndimage.binary_erosion(brain_of(cohort, IDS[1]))
        errors = {}
        for how in ("linear", "average"):
            out = tmp_path / how
            brought = bring(cohort, tmp_path / "maps", out, direction="higher", resample=how)
            errors[how] = np.abs(kept(brought, IDS[1]) - made[IDS[1]])[inner].mean()
        assert errors["linear"] < 0.6 * errors["average"]

    def test_not_packed(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        without_gzip(maps)
        self.check(cohort, bring(cohort, maps, tmp_path / "run"))

    def test_on_the_cohorts_grid_they_are_taken_as_they_are(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        (tmp_path / "maps").mkdir()
        for line in cohort.subjects.itertuples():
            rng = np.random.default_rng(line.row)
            values = rng.random(cohort.shape[::-1]).astype(np.float32)
            image = nib.Nifti1Image(values[::-1], np.array(line.affine) @ flip(values.shape[0]))
            nib.save(image, tmp_path / f"maps/{line.id}.nii.gz")
        brought = bring(cohort, tmp_path / "maps", tmp_path / "run", direction="higher")
        row = int(cohort.subjects.set_index("id").loc[IDS[2]]["row"])
        values = np.random.default_rng(row).random(cohort.shape[::-1]).astype(np.float32)
        brain = brain_of(cohort, IDS[2])
        assert np.array_equal(kept(brought, IDS[2])[brain], values.T[brain])

    def test_without_the_scan_its_affine_counts(self, tmp_path: Path) -> None:
        cohort = write_lesioned(tmp_path / "cohort")
        for path in (tmp_path / "cohort/scans").glob("*_T1w.nii.gz"):
            path.unlink()
        self.check(cohort, bring(cohort, write_maps(tmp_path / "maps"), tmp_path / "run"))

    @pytest.mark.parametrize("scan", ["gone", "without orientation", "of other voxels"])
    def test_without_orientation_the_grid_counts_only_where_no_file_is_recorded(
        self, cohort: Cohort, tmp_path: Path, scan: str
    ) -> None:
        brain = brain_of(cohort, IDS[0])
        affine = np.array(cohort.subjects.set_index("id").loc[IDS[0]]["affine"])
        values = np.random.default_rng(0).random(brain.shape[::-1]).astype(np.float32)
        nib.save(without_place(nib.Nifti1Image(values, affine)), tmp_path / "map.nii")
        raw, source = read_image(str(tmp_path / "map.nii")), str(tmp_path / "scan.nii")
        if scan == "without orientation":
            nib.save(without_place(nib.Nifti1Image(values, affine)), source)
        elif scan == "of other voxels":
            nib.save(nib.Nifti1Image(values[1:], affine), source)
        with pytest.raises(ScanError, match="so that its place is unknown"):
            on_grid(raw, "map.nii", affine, brain, source, MapsConfig())
        for none in ("", "phantom://1"):
            _, notes = on_grid(raw, "map.nii", affine, brain, none, MapsConfig())
            assert notes == ["the file records no orientation, taken as on the cohort's grid"]

    def test_on_s3(self, cohort: Cohort, tmp_path: Path, bucket: str) -> None:
        maps = write_maps(tmp_path / "maps")
        client = boto3.client("s3")
        for path in maps.iterdir():
            client.upload_file(str(path), bucket.removeprefix("s3://"), f"maps/{path.name}")
        brought = bring(cohort, f"{bucket}/maps", tmp_path / "run")
        self.check(cohort, brought)
        there = bring_maps(f"{bucket}/maps", cohort, f"{bucket}/run", name="Theirs")
        assert weights_digest(there.run) == weights_digest(brought.run)


def flip(num: int) -> np.ndarray:
    """From the indices of an array to those of the array with its first axis turned."""
    matrix = np.diag([-1.0, 1.0, 1.0, 1.0])
    matrix[0, 3] = num - 1
    return matrix


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serve_bucket("outside"):
        yield "s3://outside"


def shifted(image: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 5
    return nib.Nifti1Image(image.get_fdata().astype(np.float32), affine)


def far_away(image: nib.Nifti1Image) -> nib.Nifti1Image:
    affine = image.affine.copy()
    affine[0, 3] += 300
    return nib.Nifti1Image(image.get_fdata()[:-1].astype(np.float32), affine)


def with_values(values: Any) -> Any:
    def change(image: nib.Nifti1Image) -> nib.Nifti1Image:
        made = values(image.get_fdata()).astype(np.float32)
        return nib.Nifti1Image(made, image.affine)

    return change


def nan_inside(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    middle = tuple(slice(n // 2 - 3, n // 2 + 3) for n in values.shape)
    values[middle] = np.nan
    return values


class TestBadMaps:
    """One bad map is named with its reason, and the others go on."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (with_values(np.ones_like), "it is 1 everywhere in the brain"),
            (with_values(nan_inside), "voxels of the brain are NaN or infinite"),
            (with_values(lambda v: v + np.inf), "no voxel is finite"),
            (with_values(lambda v: np.where(v > 0.5, 3e38, -3e38)), "which no arithmetic holds"),
            (with_values(lambda v: np.stack([v, v], -1)), "2 frames"),
            (with_values(lambda v: v[:, :, :1]), "a single slice"),
            (shifted, "has as many voxels as its scan .* but lies up to 5.0 mm elsewhere"),
            (far_away, "100% of the brain lie outside of the map"),
        ],
    )
    def test_it_is_quarantined(
        self, cohort: Cohort, tmp_path: Path, change: Any, reason: str
    ) -> None:
        maps = write_maps(tmp_path / "maps")
        write_maps(maps, IDS[4:5], change)
        brought = bring(cohort, maps, tmp_path / "run")
        (absent,) = brought.absent
        assert absent.id == IDS[4]
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(absent.reason)
        assert IDS[4] in absent.source
        low = load_detector(brought.run).score_range[0]
        assert (kept(brought, IDS[4]) == low).all()
        assert brought.num_maps == len(IDS) - 1

    def test_one_in_which_nothing_is_found_counts(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        write_maps(maps, IDS[4:5], with_values(np.zeros_like))
        brought = bring(cohort, maps, tmp_path / "run", missing="refuse")
        assert (brought.num_maps, brought.absent) == (len(IDS), ())
        assert f"nothing was found in these scans ({IDS[4]})" in brought.remarks[0]
        low = load_detector(brought.run).score_range[0]
        assert low > 0  # of the other maps
        assert (kept(brought, IDS[4])[brain_of(cohort, IDS[4])] == 0).all()

    def test_a_method_that_gives_one_value_everywhere(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps", IDS, with_values(np.zeros_like))
        with pytest.raises(TooManyFailuresError, match="it is 0 everywhere in the brain"):
            bring(cohort, maps, tmp_path / "run")

    def test_a_file_that_was_cut_short(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        path = maps / f"{IDS[5]}_anomaly.nii.gz"
        path.write_bytes(path.read_bytes()[:2000])
        said = reasons(bring(cohort, maps, tmp_path / "run"))
        assert "gzip is damaged" in said[IDS[5]]
        write_maps(maps, IDS[5:6])
        assert not bring(cohort, maps, tmp_path / "run").absent

    def test_two_maps_of_one_scan(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        write_maps(maps, IDS[:1], ending="_again.nii.gz")
        said = reasons(bring(cohort, maps, tmp_path / "run"))[IDS[0]]
        assert "2 files are maps of it" in said
        assert "_again.nii.gz" in said
        assert "--pattern" in said
        assert not bring(cohort, maps, tmp_path / "run", pattern="*_anomaly.nii.gz").absent

    def test_of_nobody_and_missing(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps", [*IDS[:-1], "sub-99"])
        brought = bring(cohort, maps, tmp_path / "run")
        assert reasons(brought) == {IDS[-1]: "no map of it was found"}
        assert [one.path.rsplit("/", 1)[-1] for one in brought.left_out] == [
            "sub-99_anomaly.nii.gz"
        ]
        match = compare(brought.run, cohort)
        assert match.absent == (IDS[-1],)
        assert any(f"1 of {len(IDS)} scans ({IDS[-1]})" in note for note in match.notes)
        with pytest.raises(TooManyFailuresError, match="--missing refuse forbids: sub-08"):
            bring(cohort, maps, tmp_path / "other", missing="refuse")

    def test_most_are_missing(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps", IDS[:3])
        with pytest.raises(TooManyFailuresError, match="5 of 8 scans have no usable map"):
            bring(cohort, maps, tmp_path / "run")


class TestDirection:
    def test_inverted_maps_are_refused_by_name(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps", change=with_values(lambda v: 3 - v))
        with pytest.raises(EvaluationError, match=r"Theirs: the maps look inverted.*--direction"):
            bring(cohort, maps, tmp_path / "run")
        right = bring(cohort, write_maps(tmp_path / "right"), tmp_path / "other")
        turned = bring(cohort, maps, tmp_path / "turned", direction="lower")
        name = IDS[6]
        difference = kept(turned, name) + 3 - kept(right, name)
        assert np.abs(difference[brain_of(cohort, name)]).max() < 1e-5
        insisted = bring(cohort, maps, tmp_path / "insisted", direction="higher")
        assert not insisted.absent

    def test_what_is_advised_works_in_the_same_folder(self, cohort: Cohort, tmp_path: Path) -> None:
        maps, out = write_maps(tmp_path / "few", IDS[:3]), tmp_path / "run"
        with pytest.raises(TooManyFailuresError):
            bring(cohort, maps, out)
        maps = write_maps(tmp_path / "maps", change=with_values(lambda v: 3 - v))
        with pytest.raises(EvaluationError, match="the maps look inverted") as refused:
            bring(cohort, maps, out)
        assert "another --out" not in str(refused.value)
        assert not any(out.glob("*"))
        assert not bring(cohort, maps, out, direction="lower").absent

    def test_a_refusal_leaves_what_another_job_began(self, cohort: Cohort, tmp_path: Path) -> None:
        out = tmp_path / "run"
        bring(cohort, write_maps(tmp_path / "maps"), out)
        (out / "summary.json").rename(tmp_path / "summary.json")
        inverted = write_maps(tmp_path / "inverted", change=with_values(lambda v: 3 - v))
        before = {path.relative_to(out) for path in out.rglob("*")}
        with pytest.raises(EvaluationError, match="lower ones in another --out"):
            bring(cohort, inverted, out)
        with pytest.raises(TooManyFailuresError):
            bring(cohort, write_maps(tmp_path / "few", IDS[:3]), out)
        assert {path.relative_to(out) for path in out.rglob("*")} == before
        with pytest.raises(CheckpointError, match="choose another --out"):
            bring(cohort, inverted, out, direction="lower")

    def test_after_a_kill_the_other_one_may_be_chosen(
        self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maps, out = write_maps(tmp_path / "maps"), tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(MapStore, "write_index", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                bring(cohort, maps, out)
        assert Run.is_begun(str(out))
        assert bring(cohort, maps, out, direction="lower").num_maps == len(IDS)

    def test_the_test_part_decides_nothing(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        write_maps(maps, IDS[3:], with_values(lambda v: 3 - v))
        assert bring(cohort, maps, tmp_path / "run").remarks == ()


def _interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


class TestRange:
    def test_is_that_of_the_maps_in_the_brain_or_as_given(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        maps = write_maps(tmp_path / "maps")
        low, high = load_detector(bring(cohort, maps, tmp_path / "a").run).score_range
        values = [kept(bring(cohort, maps, tmp_path / "a"), n)[brain_of(cohort, n)] for n in IDS]
        assert (low, high) == (min(v.min() for v in values), max(v.max() for v in values))
        given = bring(cohort, maps, tmp_path / "b", score_range=(0.0, 4.0))
        assert load_detector(given.run).score_range == (0.0, 4.0)
        lower = bring(cohort, maps, tmp_path / "c", score_range=(0.0, 4.0), direction="lower")
        assert load_detector(lower.run).score_range == (-4.0, 0.0)

    @pytest.mark.parametrize("given", [(50.0, 60.0), (-9.0, -8.0), (0.0, 1e9)])
    @pytest.mark.parametrize("direction", ["higher", "lower"])
    def test_one_that_leaves_no_difference_is_refused(
        self, cohort: Cohort, tmp_path: Path, given: tuple[float, float], direction: Any
    ) -> None:
        maps = write_maps(tmp_path / "maps")
        with pytest.raises(EvaluationError, match=r"without any difference: inside .* are 0\.\d"):
            bring(cohort, maps, tmp_path / "run", score_range=given, direction=direction)
        assert not list((tmp_path / "run").iterdir())

    def test_one_that_is_far_too_wide_is_noted(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        (remark,) = bring(cohort, maps, tmp_path / "run", score_range=(0.0, 5000.0)).remarks
        assert "levels of --score-range: a narrower one" in remark

    def test_single_high_voxels_do_not_flatten_all_others(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        def peak(values: np.ndarray) -> np.ndarray:
            values = values.copy()
            values[tuple(n // 2 for n in values.shape)] = 1e6
            return values

        maps = write_maps(tmp_path / "maps")
        write_maps(maps, IDS[3:4], with_values(peak))
        brought = bring(cohort, maps, tmp_path / "run")
        assert load_detector(brought.run).score_range[1] < 100
        assert "count as equal" in brought.remarks[0]

    def test_small_sharp_lesions_are_not_flattened(self, cohort: Cohort, tmp_path: Path) -> None:
        """Hardly anything in most of the brain, and all that counts in few voxels of some scans."""
        folder, lesions = tmp_path / "maps", {}
        folder.mkdir()
        for line in cohort.subjects.itertuples():
            rng = np.random.default_rng(line.row)
            values = rng.uniform(0, 0.001, cohort.shape).astype(np.float32)
            inner = np.argwhere(ndimage.binary_erosion(brain_of(cohort, line.id), iterations=2))
            if line.row >= 5:
                lesions[line.id] = tuple(inner[:150].T)
                values[lesions[line.id]] = rng.uniform(0.3, 0.99, 150)
            nib.save(nib.Nifti1Image(values.T, np.array(line.affine)), folder / f"{line.id}.nii")
        brought = bring(cohort, folder, tmp_path / "run", direction="higher")
        assert brought.remarks == ()
        high = load_detector(brought.run).score_range[1]
        assert all(kept(brought, name)[at].max() <= high for name, at in lesions.items())


class TestRun:
    def test_it_says_what_it_is(self, cohort: Cohort, tmp_path: Path) -> None:
        brought = bring(cohort, write_maps(tmp_path / "maps"), tmp_path / "run", seed=3)
        config = json.loads((tmp_path / "run/config.json").read_text())
        assert (config["name"], config["maps"]["what"]) == ("Theirs", "maps from outside")
        assert config["maps"]["source"] == str(tmp_path / "maps")
        assert len(config["maps"]["digest"]) == 64
        assert Run.open(str(tmp_path / "run")).experiment == brought.run.experiment
        assert from_json(Experiment, to_json(brought.run.experiment)) == brought.run.experiment
        (record,) = load_runs([brought.run.url])
        assert (record.label, record.is_plain, record.seed) == ("Theirs", False, 3)
        with pytest.raises(RunError, match="predicts nothing"):
            model_of_run(brought.run)
        with pytest.raises(ConfigError, match="nothing else can be scored"):
            load_detector(brought.run).detect(None, None)  # type: ignore[arg-type]

    def test_again_reads_what_has_changed(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        first = bring(cohort, maps, tmp_path / "run")
        weights = weights_digest(first.run)
        times = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/maps").glob("*.npz")}
        assert weights_digest(bring(cohort, maps, tmp_path / "run").run) == weights
        assert times == {p: p.stat().st_mtime_ns for p in times}
        write_maps(maps, IDS[7:], with_values(lambda v: v**2))
        again = bring(cohort, maps, tmp_path / "run")
        assert weights_digest(again.run) != weights
        now = set((tmp_path / "run/maps").glob("*.npz"))
        assert len(now - set(times)) == len(set(times) - now) == 1

    def test_a_call_that_is_refused_takes_nothing_from_a_finished_run(
        self, cohort: Cohort, tmp_path: Path
    ) -> None:
        brought = bring(cohort, write_maps(tmp_path / "maps"), tmp_path / "run")
        before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        few = write_maps(tmp_path / "few", IDS[:2], with_values(lambda v: v**2))
        with pytest.raises(TooManyFailuresError):
            bring(cohort, few, tmp_path / "run")
        turned = write_maps(tmp_path / "turned", change=with_values(lambda v: 3 - v))
        with pytest.raises(EvaluationError, match="look inverted"):
            bring(cohort, turned, tmp_path / "run")
        assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
        assert all(kept(brought, str(name)).any() for name in cohort.subjects["id"])

    def test_a_cohort_without_lesions_is_refused_before_anything(
        self, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        maps = write_maps(tmp_path / "maps")
        monkeypatch.setattr(type(cohort), "has_lesion", property(lambda self: False))
        with pytest.raises(EvaluationError, match="no lesion masks"):
            bring(cohort, maps, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_kept_map_that_is_damaged(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        brought = bring(cohort, maps, tmp_path / "run")
        path = next((tmp_path / "run/maps").glob("0000000-*.npz"))
        path.write_bytes(path.read_bytes()[:-9])
        name = str(cohort.subjects.set_index("row").loc[0]["id"])
        with pytest.raises(EvaluationError, match=r"npz is damaged: run the same"):
            kept(brought, name)
        bring(cohort, maps, tmp_path / "run")
        assert kept(brought, name).any()

    def test_a_job_that_was_cut_short_is_known(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        brought = bring(cohort, maps, tmp_path / "run")
        state = (tmp_path / "run/checkpoint").rename(tmp_path / "before")
        write_maps(maps, IDS[7:], with_values(lambda v: v**2))
        bring(cohort, maps, tmp_path / "run")
        shutil.rmtree(tmp_path / "run/checkpoint")
        state.rename(tmp_path / "run/checkpoint")
        with pytest.raises(RunError, match="read in part: run the same"):
            load_detector(brought.run)
        bring(cohort, maps, tmp_path / "run")
        assert load_detector(brought.run)

    def test_another_method_or_cohort_is_refused(self, cohort: Cohort, tmp_path: Path) -> None:
        maps = write_maps(tmp_path / "maps")
        brought = bring(cohort, maps, tmp_path / "run")
        with pytest.raises(CheckpointError, match="choose another --out"):
            bring_maps(str(maps), cohort, str(tmp_path / "run"), name="Others")
        other = write_lesioned(tmp_path / "cohort", sizes=(1.5, 1.5, 1.5))
        with pytest.raises(CheckpointError, match="choose another --out"):
            bring(other, maps, tmp_path / "run")
        with pytest.raises(EvaluationError, match="is another cohort"):
            compare(brought.run, other)
        with pytest.raises(RunError, match="choose another --out"):
            bring(cohort, maps, maps)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"score_range": (1.0, 1.0)}, "low < high"),
            ({"direction": "up"}, "direction must be one of check, higher, lower"),
            ({"resample": "cubic"}, "resample must be one of"),
            ({"missing": "skip"}, "missing must be one of"),
            ({"seed": -1}, "seed must be >= 0"),
        ],
    )
    def test_settings_are_checked(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            replace(MapsConfig(), **changes)

    @pytest.mark.parametrize("name", ["3D-Cube-n", "HistEq", "PCA-7"])
    def test_a_name_of_ours_is_refused(self, cohort: Cohort, tmp_path: Path, name: str) -> None:
        with pytest.raises(EvaluationError, match="is the name of a method of uadray"):
            bring_maps(str(tmp_path), cohort, str(tmp_path / "run"), name=name)

    def test_a_name_is_needed(self, cohort: Cohort, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="name must be"):
            bring_maps(str(tmp_path), cohort, str(tmp_path / "run"), name=" ")
        assert not files.exists(str(tmp_path / "run"))


def test_maps_of_predict_are_found_in_its_folder(tmp_path: Path) -> None:
    request = {"run": "x", "identity": "y"}
    files.write_json(str(tmp_path / "predict.json"), {"format": 1, "request": request})
    places = ["sub-01/anomaly.nii.gz", "sub-02/anat/sub-02_desc-anomaly_probseg.nii.gz"]
    others = ["sub-01/brain_mask.nii.gz", "sub-02/anat/sub-02_desc-anomaly_mask.nii.gz"]
    for name in (*places, *others):
        files.write_bytes(str(tmp_path / name), b"")
    found = find_maps(str(tmp_path), IDS)
    assert found.by_id == {
        f"sub-0{k}": (str(tmp_path / name),) for k, name in enumerate(places, start=1)
    }


def test_shapes_of_the_helpers() -> None:
    affine, shape = grid(sizes=(2.0, 2.0, 2.0))
    assert score(affine, shape).shape == shape
