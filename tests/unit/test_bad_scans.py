"""Scans as they come: what can be taken is taken and noted, the rest is refused with a reason."""

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_scans import TINY, brain_image, ellipsoid, write

from uadray import files
from uadray.errors import ScanError
from uadray.preparation.geometry import to_canonical, voxel_ml
from uadray.preparation.layouts import Scan
from uadray.preparation.nifti import read_image
from uadray.preparation.read import load_volume
from uadray.preparation.settings import DOUBT
from uadray.preparation.steps import prepare_scan

IMAGE = brain_image()
SHAPE = IMAGE.shape
BRAIN = IMAGE > 0
LESION = ellipsoid(SHAPE, (3, 3, 3), (9, 12, 12))


def scan(image: str | Path, **fields) -> Scan:
    return Scan(
        **({"id": "one", "subject": "one", "modality": "T2w", "image": str(image)} | fields)
    )


def save(path: Path, array: np.ndarray = IMAGE, affine: np.ndarray | None = None, **header) -> Path:
    """Write a NIfTI file, and then fields of its header past all checks."""
    write(path, array, affine)
    if header:
        packed = path.name.endswith(".gz")
        content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
        raw = np.frombuffer(content, nib.Nifti1Header.template_dtype, count=1).copy()
        for name, value in header.items():
            raw[name] = value
        content[:348] = raw.tobytes()
        path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    return path


def moved(dx: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = dx
    return affine


def turned(degrees: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return affine


def sheared(degrees: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.deg2rad(degrees))
    return affine


def changed(path: Path, change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def two_forms(path: Path, sform: np.ndarray, qform: np.ndarray) -> Path:
    image = nib.Nifti1Image(IMAGE, np.eye(4))
    image.set_qform(qform, code=1)
    image.set_sform(sform, code=2)
    nib.save(image, path)
    return path


def with_voxel(value: float, place: tuple[int, int, int]) -> np.ndarray:
    image = IMAGE.copy()
    image[place] = value
    return image


def colours(path: Path) -> Path:
    array = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def with_mask(folder: Path, kind: str, mask: np.ndarray, affine: np.ndarray | None = None) -> Scan:
    return scan(
        save(folder / "image.nii"), **{kind: str(save(folder / f"{kind}.nii", mask, affine))}
    )


SINGULAR = np.diag([1.0, 1.0, 1.0, 1.0])
SINGULAR[:3, 2] = SINGULAR[:3, 1]
INSIDE, CORNER = (11, 13, 12), (0, 0, 0)
ANNEX = ".git/annex/objects/X/Y/MD5E-s9--1.nii.gz/MD5E-s9--1.nii.gz"

REFUSED = {
    "missing": (lambda f: scan(f / "gone.nii"), r"gone\.nii: no such file; look for it"),
    "dangling link": (
        lambda f: scan(linked(f / "link.nii", "/nowhere/scan.nii")),
        r"link\.nii: a link to /nowhere/scan\.nii, which is not there; mend the link",
    ),
    "link of git-annex": (
        lambda f: scan(linked(f / "link.nii.gz", ANNEX)),
        r"link\.nii\.gz: a link to \.git/annex.*`datalad get`",
    ),
    "pointer of Git LFS": (
        lambda f: scan(
            changed(save(f / "a.nii"), lambda _: b"version https://git-lfs.github.com/spec/v1\n")
        ),
        r"a\.nii: holds a pointer of git-annex or Git LFS.*git lfs pull",
    ),
    "folder": (lambda f: scan(f), r": cannot be read \(Is a directory\)"),
    "empty file": (
        lambda f: scan(changed(save(f / "a.nii"), lambda _: b"")),
        r"a\.nii: expected a NIfTI file, but it begins with b''",
    ),
    "truncated gzip": (
        lambda f: scan(changed(save(f / "cut.nii.gz"), lambda c: c[:2000])),
        r"cut\.nii\.gz: expected a whole NIfTI file, but its gzip is damaged.*fetch it again",
    ),
    "a flipped bit in gzip": (
        lambda f: scan(
            changed(save(f / "bit.nii.gz"), lambda c: c[:-5] + bytes([c[-5] ^ 1]) + c[-4:])
        ),
        r"bit\.nii\.gz: .* its gzip is damaged",
    ),
    "truncated": (
        lambda f: scan(changed(save(f / "cut.nii"), lambda c: c[:-100])),
        r"cut\.nii: .* of 54912 bytes of voxels, which its header says, 54812 are there",
    ),
    "truncated header": (
        lambda f: scan(changed(save(f / "cut.nii"), lambda c: c[:200])),
        r"cut\.nii: expected a NIfTI file",
    ),
    "larger than its header": (
        lambda f: scan(save(f / "big.nii", dim=[3, 11, 26, 24, 1, 1, 1, 1])),
        r"big\.nii: its header says 27456 bytes .* but 54912 are there: header and voxels belong",
    ),
    "much smaller than its header": (
        lambda f: scan(save(f / "a.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])),
        r"a\.nii: .* of 108000000000000 bytes .* 54912 are there",
    ),
    "no lengths": (
        lambda f: scan(save(f / "a.nii", dim=[3, 22, 0, 24, 1, 1, 1, 1])),
        r"a\.nii: .* its header says \(3, 22, 0, 24",
    ),
    "an unknown type": (
        lambda f: scan(save(f / "a.nii", datatype=4242)),
        r"a\.nii: its header has data code 4242, which is no type of voxels",
    ),
    "a web page": (
        lambda f: scan(changed(save(f / "a.nii"), lambda _: b"<!DOCTYPE html>" * 40)),
        r"a\.nii: expected a NIfTI file, but it begins with b'<!DOCTYPE ht'",
    ),
    "img without hdr": (
        lambda f: scan(changed(save(f / "a.nii").rename(f / "a.img"), lambda c: c)),
        r"a\.hdr: no such file, though its \.img is there",
    ),
    "several frames": (
        lambda f: scan(save(f / "bold.nii", np.ones((4, 4, 4, 3), np.float32))),
        r"bold\.nii: expected one volume.*\(4, 4, 4, 3\), which is 3 frames; write the one",
    ),
    "two dimensions": (
        lambda f: scan(save(f / "slice.nii", np.ones((9, 9), np.float32))),
        r"slice\.nii: expected one volume.*\(9, 9\), a single slice",
    ),
    "one slice": (
        lambda f: scan(save(f / "slice.nii", np.ones((9, 9, 1), np.float32))),
        r"slice\.nii: expected one volume.*\(9, 9, 1\), a single slice",
    ),
    "colours": (lambda f: scan(colours(f / "rgb.nii")), r"rgb\.nii: holds colours"),
    "complex": (
        lambda f: scan(save(f / "k.nii", IMAGE.astype(np.complex64))),
        r"k\.nii: holds complex numbers; give their magnitude",
    ),
    "NaN in the brain": (
        lambda f: scan(save(f / "bad.nii", with_voxel(np.nan, INSIDE))),
        r"bad\.nii: 1 of \d+ voxels of the brain are NaN or infinite; mend",
    ),
    "infinite in the mask": (
        lambda f: scan(
            save(f / "bad.nii", with_voxel(np.inf, INSIDE)), brain=str(save(f / "b.nii", BRAIN))
        ),
        r"bad\.nii: 1 of \d+ voxels of the brain are NaN or infinite; mend",
    ),
    "nothing finite": (
        lambda f: scan(save(f / "bad.nii", np.full(SHAPE, np.nan, np.float32))),
        r"bad\.nii: expected an image, but no voxel is finite",
    ),
    "zeros": (
        lambda f: scan(save(f / "zero.nii", np.zeros(SHAPE, np.float32))),
        r"zero\.nii: expected an image, but it is all zeros",
    ),
    "constant": (
        lambda f: scan(save(f / "flat.nii", np.full(SHAPE, 4, np.float32))),
        r"flat\.nii: .* it is 4 everywhere",
    ),
    "a constant brain": (
        lambda f: scan(save(f / "flat.nii", BRAIN.astype(np.float32))),
        r"flat\.nii: expected an image, but its brain is 1 everywhere",
    ),
    "negative without a background": (
        lambda f: scan(
            save(f / "a.nii", np.random.default_rng(0).normal(0, 9, SHAPE).astype(np.float32))
        ),
        r"a\.nii: .* no constant background, so that its brain cannot be recognised; give a",
    ),
    "singular": (
        lambda f: scan(save(f / "grid.nii", affine=SINGULAR)),
        r"grid\.nii: its affine cannot be inverted",
    ),
    "huge voxels": (
        lambda f: scan(save(f / "grid.nii", affine=np.diag([1, 1, 20, 1]))),
        r"voxels of 1 x 1 x 20 mm, expected 0\.1 to 10",
    ),
    "tiny voxels": (
        lambda f: scan(save(f / "grid.nii", affine=np.diag([0.01, 1, 1, 1]))),
        r"voxels of 0\.01 x 1 x 1 mm",
    ),
    "voxels of no size": (
        lambda f: scan(save(f / "a.nii", sform_code=0, pixdim=[1, 1, 0, 1, 1, 1, 1, 1])),
        r"a\.nii: its voxels are 1 x 0 x 1 mm by its header",
    ),
    "voxels of NaN": (
        lambda f: scan(save(f / "a.nii", srow_x=[np.nan, 0, 0, 0])),
        r"a\.nii: its affine cannot be inverted",
    ),
    "a qform that is no rotation alone": (
        lambda f: scan(save(f / "a.nii", sform_code=0, qform_code=1, quatern_b=2.0)),
        r"a\.nii: the qform of its header is no rotation \(quaternion 2, 0, 0\), and it has no",
    ),
    "sheared": (
        lambda f: scan(save(f / "a.nii", affine=sheared(15))),
        r"a\.nii: two of its axes stand 75 degrees to each other",
    ),
    "sform and qform of other sizes": (
        lambda f: scan(two_forms(f / "a.nii", np.diag([1, 1, 1.2, 1]), np.eye(4))),
        r"a\.nii: its voxels are 1 x 1 x 1\.2 mm by its sform, but 1 x 1 x 1 mm by its qform",
    ),
    "sform and qform mirrored": (
        lambda f: scan(two_forms(f / "a.nii", np.eye(4), np.diag([-1, 1, 1, 1]))),
        r"a\.nii: sform and qform of its header mirror each other, so that left and right",
    ),
    "too large": (
        lambda f: scan(save(f / "grid.nii", affine=np.diag([2, 1, 1, 1]))),
        r"grid\.nii: .*left_right 3\d mm \(limit 24",
    ),
    "skull": (
        lambda f: scan(save(f / "grid.nii", affine=np.diag([9, 9, 9, 1]))),
        r"mL are brain, expected at most 2500",
    ),
    "no brain in the mask": (
        lambda f: with_mask(f, "brain", np.zeros(SHAPE, bool)),
        r"brain\.nii: the brain mask is empty",
    ),
    "no lesion in the mask": (
        lambda f: with_mask(f, "lesion", np.zeros(SHAPE, bool)),
        r"lesion\.nii: expected a lesion, but the mask is empty; leave the scan out or prepare it",
    ),
    "no lesion of the label": (
        lambda f: replace(with_mask(f, "lesion", LESION), lesion_labels=(2,)),
        r"lesion\.nii: expected a lesion of label 2, but the mask is empty",
    ),
    "lesion outside the brain": (
        lambda f: with_mask(f, "lesion", ellipsoid(SHAPE, (1, 1, 1), CORNER)),
        r"lesion\.nii: no voxel .* is lesion",
    ),
    "mask somewhere else": (
        lambda f: with_mask(f, "lesion", LESION, moved(40)),
        r"lesion\.nii: by its affine 100% of the mask lies outside of its scan .*image\.nii",
    ),
    "mask without orientation": (
        lambda f: scan(
            save(f / "image.nii"),
            lesion=str(save(f / "lesion.nii", np.ones((5, 5, 5), bool), sform_code=0)),
        ),
        r"lesion\.nii: the mask has \(5, 5, 5\) voxels, .* has \(22, 26, 24\), and one of both",
    ),
    "mask that is a picture": (
        lambda f: with_mask(f, "lesion", IMAGE.astype(np.uint8)),
        r"lesion\.nii: expected a mask of labels.* it has \d+ values up to 1\d\d, as a picture has",
    ),
    "mask below 0": (
        lambda f: with_mask(f, "lesion", LESION.astype(np.int16) - 1),
        r"lesion\.nii: expected a mask, but it has values below 0, to -1",
    ),
    "mask of intensities": (
        lambda f: with_mask(f, "brain", IMAGE * 1.234),
        r"brain\.nii: expected a mask of labels, or shares from 0 to 1, but its values run from 0",
    ),
    "shares where labels count": (
        lambda f: replace(with_mask(f, "lesion", LESION * np.float32(0.7)), lesion_labels=(1,)),
        r"lesion\.nii: expected a mask of labels \(1,\), .* with fractions",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_scans_say_what_is_wrong(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(ScanError, match=message):
        prepare_scan(make(tmp_path), TINY)


@settings(deadline=None, max_examples=200)
@given(
    places=st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=6),
    packed=st.booleans(),
    kept=st.integers(0, 6000) | st.none(),
)
def test_whatever_is_damaged_is_read_or_refused(tmp_path_factory, places, packed, kept):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    path = save(folder / "a.nii", IMAGE[8:16, 8:18, 8:17], np.diag([3, 3, 3, 1]))
    content = bytearray(path.read_bytes())
    for place, value in places.items():
        content[place] = value
    content = content[:kept]
    path.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))
    try:
        volume = load_volume(scan(path))
    except ScanError as error:
        message, volume = str(error), None
    if volume is None:
        assert str(path) in message
        return
    assert np.isfinite(volume.image).all()
    assert np.isfinite(volume.affine).all()
    assert volume.image.shape == volume.brain.shape
    assert volume.brain.any()


def test_permission_denied(tmp_path, monkeypatch):
    path = str(save(tmp_path / "a.nii"))

    def refuse(url: str) -> bytes:
        raise PermissionError(13, "Permission denied", url)

    # Tests may run as root, whom no mode keeps out.
    monkeypatch.setattr(files, "read_bytes", refuse)
    with pytest.raises(ScanError, match=r"a\.nii: cannot be read \(Permission denied\); see to"):
        read_image(path)
    # A store that refuses is not the scan's fault, and quarantines nothing.
    with pytest.raises(PermissionError):
        read_image("s3://bucket/a.nii")


def test_a_broken_disk(tmp_path, monkeypatch):
    def fail(url: str) -> bytes:
        raise OSError(5, "Input/output error", url)

    monkeypatch.setattr(files, "read_bytes", fail)
    with pytest.raises(ScanError, match=r"a\.nii: cannot be read \(Input/output error\)"):
        read_image(str(tmp_path / "a.nii"))


class TestTaken:
    """What is no reason to refuse a scan, and what is noted about it."""

    @pytest.fixture
    def plain(self, tmp_path):
        return load_volume(scan(save(tmp_path / "plain.nii", xyzt_units=2)))

    def same(self, plain, other, *notes: str) -> None:
        assert np.array_equal(plain.image, other.image)
        assert np.array_equal(plain.brain, other.brain)
        assert np.allclose(plain.affine, other.affine, atol=1e-5)
        self.noted(other, *notes)

    def noted(self, volume, *notes: str) -> None:
        assert len(volume.notes) == len(notes), volume.notes
        for note, expected in zip(volume.notes, notes, strict=True):
            assert expected in note
            assert note.startswith(DOUBT) == expected.startswith(DOUBT)

    @pytest.mark.parametrize(
        "name", ["über/naïve Größe/脳 スキャン.nii.gz", "a#b?c/d%20e.nii", "sub 1/[x]*.nii"]
    )
    def test_any_path(self, tmp_path, plain, name):
        self.same(plain, load_volume(scan(save(tmp_path / name, xyzt_units=2))))

    def test_packed_or_not_whatever_it_is_called(self, tmp_path, plain):
        packed = save(tmp_path / "a.nii.gz", xyzt_units=2).rename(tmp_path / "a.nii")
        unpacked = save(tmp_path / "b.nii", xyzt_units=2).rename(tmp_path / "b.nii.gz")
        self.same(plain, load_volume(scan(packed)))
        self.same(plain, load_volume(scan(unpacked)))

    @pytest.mark.parametrize("kind", [nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
    @pytest.mark.parametrize("packed", ["", ".gz"])
    def test_other_formats(self, tmp_path, plain, kind, packed):
        image = kind(IMAGE, np.eye(4))
        image.header.set_xyzt_units("mm")
        ending = (".img" if "Pair" in kind.__name__ else ".nii") + packed
        nib.save(image, tmp_path / f"a{ending}")
        self.same(plain, load_volume(scan(tmp_path / f"a{ending}")))
        header = tmp_path / f"a{ending.replace('.img', '.hdr')}"
        self.same(plain, load_volume(scan(header)))

    def test_big_endian_and_scaled_integers(self, tmp_path):
        image = nib.Nifti1Image(np.zeros(SHAPE), np.eye(4), nib.Nifti1Header(endianness=">"))
        image.header.set_data_dtype(np.int16)
        image.header.set_xyzt_units("mm")
        scaled = nib.Nifti1Image(IMAGE, image.affine, image.header)
        nib.save(scaled, tmp_path / "a.nii")
        assert scaled.header.endianness == ">"
        volume = load_volume(scan(tmp_path / "a.nii"))
        assert np.allclose(volume.image, IMAGE, atol=IMAGE.max() / 2**15)
        self.noted(volume)

    def test_one_frame(self, tmp_path, plain):
        for frames in ((1,), (1, 1), (1, 1, 1)):
            path = save(tmp_path / "a.nii", IMAGE.reshape(*SHAPE, *frames), xyzt_units=2)
            self.same(plain, load_volume(scan(path)))

    def test_a_few_bytes_at_its_end(self, tmp_path, plain):
        path = changed(save(tmp_path / "a.nii", xyzt_units=2), lambda c: c + b"\n")
        self.same(plain, load_volume(scan(path)))

    def test_no_unit(self, tmp_path, plain):
        volume = load_volume(scan(save(tmp_path / "a.nii")))
        self.same(plain, volume, "states no unit of length, mm assumed")

    @pytest.mark.parametrize(("unit", "code", "size"), [("micron", 3, 1000), ("meter", 1, 0.001)])
    def test_other_units(self, tmp_path, plain, unit, code, size):
        affine = np.diag([size, size, size, 1])
        volume = load_volume(scan(save(tmp_path / "a.nii", affine=affine, xyzt_units=code)))
        self.same(plain, volume, f"lengths converted from {unit}")

    def test_a_wrong_unit(self, tmp_path, plain):
        volume = load_volume(scan(save(tmp_path / "a.nii", xyzt_units=1)))
        self.same(plain, volume, f"{DOUBT}the file states lengths in meter, which cannot be; mm")

    def test_no_orientation(self, tmp_path, plain):
        path = save(tmp_path / "a.nii", sform_code=0, xyzt_units=2)
        volume = load_volume(scan(path))
        assert nib.aff2axcodes(volume.affine) == ("L", "A", "S")
        self.noted(volume, f"{DOUBT}the file records no orientation")
        for codes in ("RAS", "PIR", "ASL"):
            stated = load_volume(scan(path, orientation=codes))
            assert "".join(nib.aff2axcodes(stated.affine)) == codes
            middle = stated.affine @ [*(np.array(SHAPE) - 1) / 2, 1]
            assert np.allclose(middle, [0, 0, 0, 1])
            self.noted(stated)
        recorded = load_volume(scan(save(tmp_path / "b.nii", xyzt_units=2), orientation="PIR"))
        self.same(plain, recorded, "records its orientation, PIR is not used")

    def test_an_analyze_pair(self, tmp_path):
        voxels = IMAGE[..., None].round().astype(np.int16)
        image = nib.AnalyzeImage(voxels, np.diag([-1, 1.25, 1, 1]))
        nib.save(image, tmp_path / "a.img")
        volume = load_volume(scan(tmp_path / "a.img", orientation="LAS"))
        assert np.array_equal(volume.image, IMAGE.round())
        assert np.allclose(volume.affine[:3, :3], np.diag([-1, 1.25, 1]))
        self.noted(volume)

    def test_sizes_of_0_beside_an_sform(self, tmp_path, plain):
        path = save(tmp_path / "a.nii", pixdim=[1, 0, 0, 0, 0, 0, 0, 0], xyzt_units=2)
        self.same(plain, load_volume(scan(path)))

    def test_sform_before_qform(self, tmp_path):
        path = two_forms(tmp_path / "a.nii", turned(30), np.eye(4))
        image = nib.load(path)
        assert np.allclose(load_volume(scan(path)).affine, image.affine)
        self.noted(
            load_volume(scan(path)),
            "sform and qform (codes 2 and 1) lie up to 1",
            "no unit",
            f"{DOUBT}its axes are turned by 30 degrees",
        )
        close = two_forms(tmp_path / "b.nii", moved(0.2), np.eye(4))
        self.noted(load_volume(scan(close)), "no unit")

    def test_a_qform_that_is_no_rotation(self, tmp_path, plain):
        path = save(tmp_path / "a.nii", qform_code=1, xyzt_units=2, quatern_b=2.0)
        self.same(plain, load_volume(scan(path)), f"{DOUBT}the qform of its header is no rotation")

    def test_nothing_is_said_on_the_terminal(self, tmp_path, capfd):
        load_volume(scan(save(tmp_path / "a.nii", pixdim=[1, -1, 1, 0, 1, 1, 1, 1])))
        assert capfd.readouterr() == ("", "")

    def test_a_small_shear(self, tmp_path):
        path = save(tmp_path / "a.nii", affine=sheared(5), xyzt_units=2)
        self.noted(load_volume(scan(path)), f"{DOUBT}two axes stand 85 degrees to each other")

    def test_not_finite_outside_the_brain(self, tmp_path, plain):
        for value in (np.nan, np.inf, -np.inf):
            image = np.where(BRAIN, IMAGE, np.float32(value))
            volume = load_volume(scan(save(tmp_path / "a.nii", image, xyzt_units=2)))
            self.same(plain, volume, f"{(~BRAIN).sum()} voxels outside the brain are NaN or inf")

    def test_not_finite_outside_the_mask(self, tmp_path, plain):
        image = with_voxel(np.nan, CORNER)
        volume = load_volume(
            scan(
                save(tmp_path / "a.nii", image, xyzt_units=2),
                brain=str(save(tmp_path / "b.nii", plain.brain)),
            )
        )
        self.same(plain, volume, "1 voxels outside the brain")

    def test_a_background_that_is_not_0(self, tmp_path, plain):
        volume = load_volume(scan(save(tmp_path / "a.nii", IMAGE - 1000, xyzt_units=2)))
        assert np.array_equal(volume.brain, plain.brain)
        assert (volume.image[~BRAIN] == 0).all()
        inside = IMAGE[BRAIN] - IMAGE[BRAIN].min()
        assert np.allclose(volume.image[BRAIN], inside, atol=1e-3)
        self.noted(volume, "background is -1000, not 0", "shifted up by 9")

    def test_z_scores(self, tmp_path, plain):
        scores = (IMAGE - IMAGE[BRAIN].mean()) / IMAGE[BRAIN].std()
        image = np.where(BRAIN, scores, 0).astype(np.float32)
        volume = load_volume(scan(save(tmp_path / "a.nii", image, xyzt_units=2)))
        assert np.array_equal(volume.brain, plain.brain)
        assert volume.image.min() == 0
        # Standardised it is the same scan.
        got, expected = (
            prepare_scan(scan(path), replace(TINY, denoise=False)).image
            for path in (tmp_path / "a.nii", tmp_path / "plain.nii")
        )
        assert np.allclose(got, expected, atol=1e-4)
        self.noted(volume, "shifted up by")

    def test_ringing_below_0(self, tmp_path, plain):
        rng = np.random.default_rng(0)
        image = np.where(BRAIN, IMAGE, rng.normal(0, 0.5, SHAPE)).astype(np.float32)
        volume = load_volume(scan(save(tmp_path / "a.nii", image, xyzt_units=2)))
        # A dark voxel at the brain's border may drown in it.
        assert (volume.brain != plain.brain).mean() < 0.001
        assert volume.image.min() == 0
        self.noted(volume, "intensities below 0 (to -1.9")

    def test_inverted_contrast(self, tmp_path, plain):
        image = np.where(BRAIN, 300 - IMAGE, 300).astype(np.float32)
        volume = load_volume(scan(save(tmp_path / "a.nii", image, xyzt_units=2)))
        assert np.array_equal(volume.brain, plain.brain)
        assert (volume.image[~BRAIN] == 0).all()
        self.noted(volume, "background is 300", f"{DOUBT}the background is brighter than the brain")
        masked = scan(tmp_path / "a.nii", brain=str(save(tmp_path / "b.nii", BRAIN)))
        self.noted(load_volume(masked), f"{DOUBT}outside of the brain it is brighter than inside")

    def test_a_t1_with_a_bright_rim(self, tmp_path):
        affine = np.diag([4, 4, 4, 1])
        deep = ellipsoid(SHAPE, tuple(n * 0.34 for n in SHAPE))
        for rim, core, doubts in ((60, 100, 0), (100, 60, 1)):
            image = np.where(BRAIN, np.where(deep, core, rim), 0) + IMAGE / 100
            path = save(tmp_path / "a.nii", image.astype(np.float32), affine, xyzt_units=10)
            for modality, expected in (("T1w", doubts), ("FLAIR", 0)):
                notes = load_volume(scan(path, modality=modality)).notes
                assert len(notes) == expected
                assert all(n.startswith(f"{DOUBT}its rim is brighter") for n in notes)

    def test_a_head_whose_brain_is_still_to_be_found(self, tmp_path):
        image = with_voxel(np.nan, CORNER) - 50
        volume = load_volume(scan(save(tmp_path / "a.nii", image, xyzt_units=2)), stripped=False)
        assert volume.brain.all()
        assert volume.image.min() == 0
        self.noted(volume, "shifted up by 50", "1 voxels outside the brain")


class TestMasks:
    def read(self, folder: Path, mask: np.ndarray, affine: np.ndarray | None = None, **fields):
        path = save(folder / "lesion.nii", mask, affine, xyzt_units=2)
        image = save(folder / "image.nii", xyzt_units=2)
        return load_volume(scan(image, lesion=str(path), **fields))

    @pytest.mark.parametrize("value", [1, 2, 255])
    def test_any_label_counts(self, tmp_path, value):
        volume = self.read(tmp_path, LESION * np.uint8(value))
        assert np.array_equal(volume.lesion, LESION)
        assert volume.notes == ()

    def test_some_labels_count(self, tmp_path):
        mask = LESION.astype(np.uint8)
        mask[15:, :, :] = 2
        volume = self.read(tmp_path, mask, lesion_labels=(1,))
        assert np.array_equal(volume.lesion, LESION)

    def test_labels_of_a_scaled_type(self, tmp_path):
        # Values as ATLAS R1 has them.
        volume = self.read(tmp_path, LESION * np.float64(254.9999999406282))
        assert np.array_equal(volume.lesion, LESION)
        assert volume.notes == ()

    @pytest.mark.parametrize(
        ("scale", "advice"),
        [
            (1 / 255, "its largest is 0.00392: it seems to have been divided by 255"),
            (1 / 65535, "its largest is 1.53e-05: it seems to have been divided by 65535"),
            (0.4, "its largest is 0.4: if it is a mask of 0 and 1 that was scaled"),
        ],
    )
    def test_small_values_are_named(self, tmp_path, scale, advice):
        mask = save(tmp_path / "m.nii", LESION * np.float32(scale), xyzt_units=2)
        image = save(tmp_path / "image.nii", xyzt_units=2)
        for kind in ("lesion", "brain"):
            with pytest.raises(
                ScanError, match=r"m\.nii: expected a mask with values of 0\.5"
            ) as e:
                load_volume(scan(image, **{kind: str(mask)}), least_lesion=0.5)
            assert advice in str(e.value)
        # A threshold of one's own takes probabilities.
        if scale == 0.4:
            volume = load_volume(scan(image, lesion=str(mask)), least_lesion=0.3)
            assert np.allclose(volume.lesion, LESION * 0.4)

    def test_numbered_lesions(self, tmp_path):
        numbers = np.where(LESION, np.cumsum(LESION).reshape(SHAPE), 0)
        assert len(np.unique(numbers)) > 64
        assert np.array_equal(self.read(tmp_path, numbers.astype(np.uint8)).lesion, LESION)

    def test_several_masks_are_merged(self, tmp_path):
        second = ellipsoid(SHAPE, (2, 2, 2), (14, 12, 12))
        empty = np.zeros(SHAPE, bool)
        more = [str(save(tmp_path / f"{k}.nii", m)) for k, m in enumerate((second, empty))]
        volume = self.read(tmp_path, LESION, more_lesions=tuple(more))
        assert np.array_equal(volume.lesion, LESION | second)

    def test_probabilities_meet_one_threshold(self, tmp_path):
        share = np.where(LESION, 0.7, 0).astype(np.float32)
        share[~LESION & ellipsoid(SHAPE, (5, 5, 5), (9, 12, 12))] = 0.3
        volume = self.read(tmp_path, share)
        assert np.array_equal(volume.lesion, share)
        assert volume.notes == ("lesion.nii holds shares or probabilities, not labels",)
        one = scan(tmp_path / "image.nii", lesion=str(tmp_path / "lesion.nii"))
        low, half = (
            prepare_scan(one, replace(TINY, mask_threshold=t)).lesion_ml for t in (0.2, 0.5)
        )
        assert low > 2 * half > 0

    def test_a_brain_mask_of_probabilities(self, tmp_path):
        path = save(tmp_path / "b.nii", np.where(BRAIN, 0.8, 0.3).astype(np.float32))
        volume = load_volume(scan(save(tmp_path / "a.nii"), brain=str(path)))
        assert np.array_equal(volume.brain, BRAIN)

    def test_not_finite_is_no_lesion(self, tmp_path):
        mask = np.where(LESION, 1, np.nan).astype(np.float32)
        volume = self.read(tmp_path, mask)
        assert np.array_equal(volume.lesion, LESION)
        assert "voxels of lesion.nii are not finite" in volume.notes[0]

    def test_less_than_half_a_voxel_off(self, tmp_path):
        volume = self.read(tmp_path, LESION, moved(0.3))
        assert np.array_equal(volume.lesion, LESION)
        assert volume.notes == ("lesion.nii lies 0.30 mm off its scan, taken as on its grid",)

    def test_without_orientation_on_the_same_number_of_voxels(self, tmp_path):
        path = save(tmp_path / "lesion.nii", LESION, sform_code=0)
        volume = load_volume(scan(save(tmp_path / "image.nii"), lesion=str(path)))
        assert np.array_equal(volume.lesion, LESION)

    def test_shifted_on_the_same_number_of_voxels(self, tmp_path):
        volume = self.read(tmp_path, LESION, moved(2))
        assert np.array_equal(volume.lesion, np.roll(LESION, 2, axis=0))
        assert volume.notes[0].startswith(f"{DOUBT}lesion.nii lies on another grid (as many voxels")

    def test_partly_outside(self, tmp_path):
        big = ellipsoid((40, 26, 24), (20, 4, 4))
        volume = self.read(tmp_path, big)
        assert np.array_equal(volume.lesion, big[:22])
        assert volume.notes[0].startswith(DOUBT)
        assert "42% of it lies outside" in volume.notes[0]

    @settings(deadline=None, max_examples=12)
    @given(
        order=st.permutations(range(3)),
        signs=st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
        sizes=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.5]), min_size=3, max_size=3),
        angle=st.floats(-20, 20),
    )
    def test_any_grid_keeps_place_and_volume(self, tmp_path_factory, order, signs, sizes, angle):
        affine = np.eye(4)
        affine[:3, :3] = turned(angle)[:3, :3] @ (np.eye(3)[:, order] * signs * sizes)
        shape = np.ceil(np.array([16, 16, 16]) / sizes).astype(int)
        centre = np.array([9.0, 12.0, 12.0])
        affine[:3, 3] = centre - affine[:3, :3] @ ((shape - 1) / 2)
        index = np.indices(tuple(shape)).reshape(3, -1)
        place = (affine[:3, :3] @ index + affine[:3, 3:]).T
        ball = (np.linalg.norm(place - centre, axis=1) <= 5).reshape(tuple(shape))
        volume = self.read(tmp_path_factory.mktemp("grid"), ball, affine)
        weights = volume.lesion / volume.lesion.sum()
        where = (np.indices(SHAPE) * weights).sum(axis=(1, 2, 3))
        # The ball on its own grid has that centre to rounding only.
        own = place[ball.ravel()].mean(axis=0)
        assert np.abs(where - own).max() < 0.05
        assert volume.lesion.sum() == pytest.approx(ball.sum() * voxel_ml(affine) * 1000, rel=0.05)


class TestOrientation:
    @settings(deadline=None, max_examples=40)
    @given(
        order=st.permutations(range(3)),
        signs=st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3),
        angles=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
        sizes=st.lists(st.floats(0.6, 1.7), min_size=3, max_size=3),
        left_handed=st.booleans(),
    )
    def test_oblique_and_left_handed_files_as_nibabel_has_them(
        self, tmp_path_factory, order, signs, angles, sizes, left_handed
    ):
        affine = np.eye(4)
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        affine[:3, :3] = turn @ (np.eye(3)[:, order] * signs * sizes)
        if (np.linalg.det(affine[:3, :3]) < 0) != left_handed:
            affine[:3, 0] *= -1
        path = save(tmp_path_factory.mktemp("turned") / "a.nii.gz", affine=affine)
        volume = to_canonical(load_volume(scan(path)))
        canonical = nib.as_closest_canonical(nib.load(path))
        assert np.array_equal(volume.image, np.asarray(canonical.dataobj))
        assert np.allclose(volume.affine, canonical.affine, atol=1e-4)
        # One voxel, followed through the scanner.
        where = np.linalg.inv(volume.affine) @ affine @ [*INSIDE, 1]
        assert volume.image[tuple(np.rint(where[:3]).astype(int))] == IMAGE[INSIDE]


def test_notes_reach_the_prepared_volume(tmp_path):
    path = save(tmp_path / "a.nii", IMAGE - 1000)
    one = prepare_scan(scan(path, notes="from the layout"), TINY)
    assert one.notes.startswith("from the layout; the file states no unit of length, mm assumed; ")
    assert "shifted up" in one.notes


def test_a_name_that_is_no_text(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe.nii")
    os.rename(save(tmp_path / "a.nii"), path)
    assert prepare_scan(scan(path), TINY).brain.any()
