"""Headers as other programs leave them: read as the standard has it, or refused; maps lie right.

Each scan is damaged byte by byte, since nibabel mends some fields when it writes them.
"""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from tiny_scans import brain_image

from uadray.errors import ScanError
from uadray.prediction.outputs import encode
from uadray.prediction.scan import Grid
from uadray.preparation.layouts import Scan
from uadray.preparation.nifti import RawImage, read_image
from uadray.preparation.read import load_volume
from uadray.preparation.settings import DOUBT

IMAGE = brain_image((12, 14, 13))
AFFINE = np.diag([1.0, 1.2, 1.4, 1.0])
AFFINE[:3, 3] = (-10, -12, -13)
TURNED = AFFINE.copy()
TURNED[:3, :3] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ AFFINE[:3, :3]

Edit = Callable[[bytearray], None]


def put(place: int, form: str, *values: float) -> Edit:
    def edit(content: bytearray) -> None:
        content[place : place + struct.calcsize(form)] = struct.pack(form, *values)

    return edit


def codes(qform: int, sform: int) -> Edit:
    return put(252, "<2h", qform, sform)


def save(path: Path, *edits: Edit, affine: np.ndarray = AFFINE, kind=nib.Nifti1Image) -> Path:
    image = kind(IMAGE, affine)
    if kind is not nib.AnalyzeImage:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    for edit in edits:
        edit(content)
    path.write_bytes(content)
    return path


def read(path: Path) -> RawImage:
    return read_image(str(path))


def written(path: Path, raw: RawImage) -> Path:
    """A map on the grid of a scan, as prediction writes it."""
    grid = Grid(affine=raw.affine, shape=raw.voxels.shape, placing=raw.placing)
    out = path.with_name("map.nii.gz")
    out.write_bytes(encode(raw.voxels, grid, "a map"))
    return out


def in_itk(path: Path) -> np.ndarray:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    image = sitk.ReadImage(str(path))
    places = [(0, 0, 0), (11, 0, 0), (0, 13, 0), (0, 0, 12), (5, 6, 7)]
    return np.array([image.TransformIndexToPhysicalPoint(place) for place in places])


PLACED = {
    "both forms": (),
    "no form": (codes(0, 0),),
    "sform": (codes(0, 1),),
    "qform": (codes(1, 0),),
    "qfac 0": (codes(1, 0), put(76, "<f", 0)),
    "qfac NaN": (codes(1, 0), put(76, "<f", np.nan)),
    "qfac 5": (codes(1, 0), put(76, "<f", 5)),
    "qfac -5": (codes(1, 0), put(76, "<f", -5)),
    "both forms and qfac 0": (put(76, "<f", 0),),
    "a size below 0, sform": (codes(0, 1), put(80, "<f", -1)),
    "a size below 0, qform": (codes(1, 0), put(80, "<f", -1)),
    "a size below 0, no form": (codes(0, 0), put(84, "<f", -1.2)),
    "other sizes beside an sform": (codes(0, 1), put(80, "<3f", 0.866, 0.9, 1.1)),
    "sizes of 0 beside an sform": (codes(0, 1), put(80, "<3f", 0, 0, 0)),
    "metres": (codes(1, 1), put(123, "<B", 1)),
    "no unit": (codes(1, 1), put(123, "<B", 0)),
    "a quaternion of NaN beside an sform": (put(256, "<f", np.nan),),
    "a quaternion of length 2 beside an sform": (put(256, "<f", 2),),
    "codes that no standard has": (codes(7, 9),),
}


@pytest.mark.parametrize("case", PLACED)
def test_a_map_lies_on_its_scan_in_every_reader(tmp_path, case):
    path = save(tmp_path / "scan.nii", *PLACED[case])
    raw = read(path)
    out = written(path, raw)
    assert np.allclose(in_itk(path), in_itk(out), atol=1e-4)
    assert np.allclose(nib.load(path).affine, nib.load(out).affine, atol=1e-5)
    assert np.array_equal(nib.load(out).get_fdata(), IMAGE)


def test_an_analyze_pair_and_a_nifti_2(tmp_path):
    for name, kind in (("a.img", nib.AnalyzeImage), ("b.nii", nib.Nifti2Image)):
        path = save(tmp_path / name, kind=kind)
        out = written(path, read(path))
        assert np.allclose(nib.load(path).affine, nib.load(out).affine, atol=1e-5)
        if kind is nib.AnalyzeImage:  # this build of ITK reads no NIfTI-2
            assert np.allclose(in_itk(path), in_itk(out), atol=1e-4)


class TestTaken:
    @pytest.mark.parametrize("qfac", [0.0, np.nan, 5.0, 1.0])
    def test_qfac(self, tmp_path, qfac):
        raw = read(save(tmp_path / "a.nii", codes(1, 0), put(76, "<f", qfac)))
        assert np.allclose(raw.affine, AFFINE, atol=1e-5)
        assert [note.split(" is ")[0] for note in raw.notes] == ["qfac of its header"] * (qfac != 1)

    @pytest.mark.parametrize(("excess", "note"), [(1e-6, 1), (1e-3, 1), (0.0, 0)])
    def test_a_quaternion_that_was_rounded(self, tmp_path, excess, note):
        length = np.sqrt((1 + excess) / 2)
        path = save(tmp_path / "a.nii", codes(1, 0), put(256, "<3f", 0, length, length))
        raw = read(path)
        axes = raw.affine[:3, :3] / np.linalg.norm(raw.affine[:3, :3], axis=0)
        assert np.allclose(axes @ axes.T, np.eye(3), atol=1e-5)
        itk = sitk.ReadImage(str(path))
        lps = np.diag([-1, -1, 1]) @ np.array(itk.GetDirection()).reshape(3, 3)
        assert np.allclose(axes, lps, atol=2e-3)
        assert sum("quaternion" in one for one in raw.notes) == note
        assert np.allclose(in_itk(path), in_itk(written(path, raw)), atol=0.05)

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize(
        ("slope", "inter", "expected"),
        [
            (1, np.nan, IMAGE),
            (2, np.nan, 2 * IMAGE),
            (2, np.inf, 2 * IMAGE),
            (np.nan, 3, IMAGE),
            (np.inf, np.nan, IMAGE),
            (0, 5, IMAGE),
            (0, np.nan, IMAGE),
            (2, 5, 2 * IMAGE + 5),
        ],
    )
    def test_scaling(self, tmp_path, order, slope, inter, expected):
        image = nib.Nifti1Image(IMAGE, AFFINE, nib.Nifti1Header(endianness=order))
        image.set_sform(AFFINE, 1)
        nib.save(image, tmp_path / "a.nii")
        content = bytearray((tmp_path / "a.nii").read_bytes())
        put(112, f"{order}2f", slope, inter)(content)
        (tmp_path / "a.nii").write_bytes(content)
        raw = read(tmp_path / "a.nii")
        assert np.allclose(raw.voxels, expected)
        odd = not np.isfinite(slope) or (slope and not np.isfinite(inter))
        assert any("scl_" in note for note in raw.notes) == bool(odd)

    def test_sizes_that_differ_from_the_sform(self, tmp_path):
        raw = read(save(tmp_path / "a.nii", codes(0, 1), put(80, "<3f", 0.8, 0.8, 0.8)))
        assert np.allclose(raw.affine, AFFINE)
        (note,) = raw.notes
        assert note.startswith(f"{DOUBT}its voxels are 1 x 1.2 x 1.4 mm by its sform")

    def test_a_size_below_0(self, tmp_path):
        raw = read(save(tmp_path / "a.nii", put(80, "<f", -1)))
        assert np.allclose(raw.affine, AFFINE, atol=1e-5)
        assert raw.notes[0].startswith(f"{DOUBT}voxel sizes below 0")
        assert "; " not in raw.notes[0]


def with_extension(kind, size: int, order: str = "<", stated: int = 0) -> bytes:
    header = nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header
    image = kind(IMAGE, AFFINE, header(endianness=order))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    content = bytearray(image.to_bytes())
    if stated:
        first = 352 if kind is nib.Nifti1Image else 544
        content[first : first + 4] = struct.pack(f"{order}i", stated)
    return bytes(content)


class TestExtensions:
    @pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("size", [8, 700, 2000, 100_000])
    def test_of_any_size(self, tmp_path, kind, order, packed, size):
        content = with_extension(kind, size, order)
        (tmp_path / "a.nii").write_bytes(gzip.compress(content) if packed else content)
        raw = read(tmp_path / "a.nii")
        assert np.array_equal(raw.voxels, IMAGE)
        assert not any("voxels begin" in note for note in raw.notes)

    @pytest.mark.parametrize("stated", [-1, 1, 7, 17, 10**9])
    def test_whose_size_is_wrong(self, tmp_path, stated):
        (tmp_path / "a.nii").write_bytes(with_extension(nib.Nifti1Image, 2000, stated=stated))
        assert np.array_equal(read(tmp_path / "a.nii").voxels, IMAGE)

    def test_that_the_voxels_would_begin_in(self, tmp_path):
        content = bytearray(with_extension(nib.Nifti1Image, 300))
        put(108, "<f", 352)(content)
        (tmp_path / "a.nii").write_bytes(content)
        raw = read(tmp_path / "a.nii")
        assert np.array_equal(raw.voxels, IMAGE)
        assert any("voxels begin at byte 352 by its header" in note for note in raw.notes)


class TestBegin:
    @pytest.mark.parametrize("stated", [0, 1, 100, 340, 348, 351, -5, np.nan, np.inf])
    @pytest.mark.parametrize("flag", [True, False])
    def test_in_the_header(self, tmp_path, stated, flag):
        path = save(tmp_path / "a.nii", put(108, "<f", stated))
        if not flag:
            # Without the four bytes on extensions, as the oldest writers.
            content = path.read_bytes()
            path.write_bytes(content[:348] + content[352:])
        raw = read(path)
        assert np.array_equal(raw.voxels, IMAGE)
        assert any("voxels begin" in note for note in raw.notes)

    @pytest.mark.parametrize("stated", [0, 100, np.nan])
    def test_where_the_size_does_not_tell(self, tmp_path, stated):
        path = save(tmp_path / "a.nii", put(108, "<f", stated))
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(ScanError, match=r"a\.nii: its header says that the voxels begin at"):
            read(path)

    @pytest.mark.parametrize("stated", [400, 10**6, 10**30])
    def test_beyond_the_voxels(self, tmp_path, stated):
        path = save(tmp_path / "a.nii", put(108, "<f", stated))
        with pytest.raises(ScanError, match=r"a\.nii"):
            read(path)

    def test_in_a_pair(self, tmp_path):
        save(tmp_path / "a.img", kind=nib.Nifti1Pair)
        header = bytearray((tmp_path / "a.hdr").read_bytes())
        put(108, "<f", 352)(header)
        (tmp_path / "a.hdr").write_bytes(header)
        assert np.array_equal(read(tmp_path / "a.img").voxels, IMAGE)


def test_endings_in_capitals(tmp_path):
    save(tmp_path / "a.img", kind=nib.Nifti1Pair)
    for ending in ("img", "hdr"):
        (tmp_path / f"a.{ending}").rename(tmp_path / f"B.{ending.upper()}")
    assert np.array_equal(read(tmp_path / "B.IMG").voxels, IMAGE)
    assert np.array_equal(read(tmp_path / "B.HDR").voxels, IMAGE)


@pytest.mark.parametrize("magic", [b"abc", b"n+1x", b"\0\0\0\0"])
def test_no_magic(tmp_path, magic):
    """ITK takes such a file for Analyze, and nibabel refuses it."""
    with pytest.raises(ScanError, match="no magic of NIfTI"):
        read(save(tmp_path / "a.nii", put(344, "<4s", magic)))


def test_an_origin_beyond_the_scanner(tmp_path):
    with pytest.raises(ScanError, match=r"lies 1e\+07 mm from the scanner's origin"):
        read(save(tmp_path / "a.nii", put(292, "<f", 1e7)))


def test_whatever_a_reader_raises_is_a_reason(tmp_path, monkeypatch):
    def broken(*_args: object, **_more: object) -> None:
        raise RecursionError("no end")

    monkeypatch.setattr("uadray.preparation.nifti.ArrayProxy", broken)
    with pytest.raises(ScanError, match=r"a\.nii: .*cannot be read \(no end\)"):
        load_volume(Scan(id="a", subject="a", modality="T1w", image=str(save(tmp_path / "a.nii"))))
