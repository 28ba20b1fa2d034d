"""One NIfTI or Analyze file as it is: fetched, unpacked, and its header believed or refused.

Files come from public sets, hospitals and other people's scripts. What can be taken in one way only
is taken, with a note; what could mean two things or is damaged is refused with a reason.
"""

import gzip
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.affines import obliquity
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt
from nibabel.spatialimages import HeaderDataError

from uadray import files
from uadray.errors import ScanError
from uadray.prepare.geometry import DOUBT, voxel_sizes

MIN_VOXEL_MM, MAX_VOXEL_MM = 0.1, 10.0
"""Edge lengths that a scan of a head can have; outside, its header is wrong."""

MAX_SIZE_RATIO = 1.1
"""Largest ratio of the voxel sizes by sform and by qform; beyond it one of them is wrong."""

MAX_SHEAR_DEG, DOUBT_SHEAR_DEG = 10.0, 2.0
"""By how much the angle between two axes may differ from 90 degrees at all, and unremarked."""

DOUBT_OBLIQUE_DEG = 20.0
"""Axes may be turned so far from the scanner's without a remark: the grid is not turned back, so
that a head scanned at a slant stays so."""

_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
_POINTERS = (b"version https://git-lfs", b"/annex/objects/", b"../")


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """One file's voxels and where they lie."""

    voxels: np.ndarray
    """float32 (X, Y, Z); may hold NaN and infinities."""
    affine: np.ndarray
    """float64 (4, 4), from a voxel's index to the scanner's millimetres; invertible."""
    oriented: bool
    """Whether the file records where its axes run; else it was assumed."""
    notes: tuple[str, ...]
    """What was assumed; those that begin with `DOUBT` want a look."""


def read_image(path: str, *, orientation: str = "") -> RawImage:
    """Read a NIfTI-1 or NIfTI-2 file, or a pair of Analyze or NIfTI files, packed or not.

    The sform decides over the qform, as in nibabel. Lengths in metres or microns become
    millimetres; without a unit they are taken as such.

    Args:
        path: Local path or fsspec URL; of a pair, either file.
        orientation: Where the axes run, such as LAS (to the left, the front, the top), in a file
            that does not record it. Without it LAS is assumed.

    Raises:
        ScanError: the file cannot be used.
        OSError: a remote store does not answer or refuses: that is no fault of the scan.
    """
    path = re.sub(r"\.hdr(\.gz)?$", r".img\1", path)
    content = _fetch(path)
    header = _fetch(_header_path(path)) if re.search(r"\.img(\.gz)?$", path) else content
    with _without_remarks():
        try:
            image, raw = _parse(path, content, header)
            _check_size(path, image, len(content))
            voxels = np.asarray(image.dataobj, np.float32)
            voxels = voxels.reshape(voxels.shape[:3])
            placed = _place(path, raw, voxels, orientation)
        except ScanError:
            raise
        except (OSError, ValueError, OverflowError, HeaderDataError, ImageFileError) as error:
            raise ScanError(
                f"{path}: expected a whole NIfTI file, but it cannot be read ({error}); fetch it "
                "again"
            ) from None
    return replace(placed, notes=(*placed.notes, *_check_affine(path, placed.affine)))


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep nibabel's remarks on headers from the terminal: what matters is told by us."""
    level = imageglobals.logger.level
    imageglobals.logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        imageglobals.logger.setLevel(level)


def _header_path(path: str) -> str:
    return re.sub(r"\.img(\.gz)?$", r".hdr\1", path)


def _fetch(path: str) -> bytes:
    """A file's content, unpacked."""
    try:
        content = files.read_bytes(path)
    except FileNotFoundError:
        raise ScanError(f"{path}: {_why_missing(path)}") from None
    except OSError as error:
        if files.is_remote(path):
            raise
        reason = error.strerror or str(error)
        raise ScanError(
            f"{path}: cannot be read ({reason}); see to its permissions and its disk"
        ) from None
    # By its content: names lie in both directions.
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError(
            f"{path}: expected a whole NIfTI file, but its gzip is damaged ({error}); fetch it "
            "again"
        ) from None


def _why_missing(path: str) -> str:
    if not files.is_remote(path) and os.path.islink(path):
        target = os.readlink(path)
        advice = "fetch its content" if "annex/objects" in target else "mend the link"
        if "annex/objects" in target:
            advice += " (`datalad get` or `git annex get`)"
        return f"a link to {target}, which is not there; {advice} or leave the scan out"
    if re.search(r"\.hdr(\.gz)?$", path):
        return "no such file, though its .img is there; an .img needs its .hdr beside it"
    return "no such file; look for it or leave the scan out"


def _parse(path: str, content: bytes, header: bytes) -> tuple[Any, Any]:
    """The image, and its header before nibabel mends it."""
    if len(content) < 400 and content.startswith(_POINTERS):
        raise ScanError(
            f"{path}: holds a pointer of git-annex or Git LFS, not the image; fetch its content "
            "(`git annex get`, `git lfs pull`)"
        )
    size = {int.from_bytes(header[:4], order) for order in ("little", "big")}
    kinds: dict[bool, dict[int, Any]] = {
        False: {348: nib.Nifti1Image, 540: nib.Nifti2Image},
        True: {348: nib.Nifti1Pair, 540: nib.Nifti2Pair},
    }
    pair = header is not content
    kind = next((kinds[pair][n] for n in (348, 540) if n in size), None)
    if kind is nib.Nifti1Pair and header[344:347] != b"ni1":
        kind = nib.AnalyzeImage
    if kind is None or len(header) < 348:
        raise ScanError(
            f"{path}: expected a NIfTI file, but it begins with {header[:12]!r}; convert it, or "
            "fetch it again"
        )
    file_map = kind.make_file_map({"image": BytesIO(content), "header": BytesIO(header)})
    raw = kind.header_class.from_fileobj(BytesIO(header), check=False)
    _check_shape(path, tuple(int(n) for n in raw["dim"]))
    return kind.from_file_map(file_map), raw


def _check_shape(path: str, dim: Sequence[int]) -> None:
    shape = tuple(dim[1 : max(0, min(dim[0], 7)) + 1])
    if min(shape, default=0) < 1:
        raise ScanError(
            f"{path}: expected one volume of three dimensions, but its header tells {tuple(dim)} "
            "as number of axes and lengths; fetch it again"
        )
    space, frames = shape[:3], int(np.prod(shape[3:]))
    if frames > 1:
        raise ScanError(
            f"{path}: expected one volume of three dimensions, but its shape is {shape}, which is "
            f"{frames} frames; write the one you want to a file of its own (nibabel: "
            "`image.slicer[..., 0]`, FSL: `fslroi IN OUT 0 1`) or average them"
        )
    if len(space) < 3 or min(space) < 2:
        raise ScanError(
            f"{path}: expected one volume of three dimensions, but its shape is {shape}, a single "
            "slice; give the whole volume"
        )


def _check_size(path: str, image: Any, num_bytes: int) -> None:
    dtype = image.get_data_dtype()
    if dtype.names:
        raise ScanError(f"{path}: holds colours, expected one intensity per voxel")
    if dtype.kind == "c":
        raise ScanError(f"{path}: holds complex numbers; give their magnitude")
    expected = int(np.prod(image.shape)) * dtype.itemsize
    there = num_bytes - int(image.dataobj.offset)
    one_slice = expected // image.shape[2]
    if there < expected:
        raise ScanError(
            f"{path}: expected a whole NIfTI file, but of {expected} bytes of voxels, which its "
            f"header tells, {max(0, there)} are there; fetch it again"
        )
    if there >= expected + one_slice:
        raise ScanError(
            f"{path}: its header tells {expected} bytes of voxels ({image.shape} of {dtype}), but "
            f"{there} are there: header and voxels belong to different images; export it again"
        )


def _place(path: str, raw: Any, voxels: np.ndarray, orientation: str) -> RawImage:
    """Choose the affine."""
    sizes = np.abs(np.asarray(raw["pixdim"][1:4], np.float64))
    is_nifti = "sform_code" in raw.keys()  # noqa: SIM118  (a header is no dictionary)
    sform = int(raw["sform_code"]) > 0 if is_nifti else False
    qform = int(raw["qform_code"]) > 0 if is_nifti else False
    notes: list[str] = []
    if not sform and not (np.isfinite(sizes).all() and sizes.all()):
        raise ScanError(
            f"{path}: its voxels are {_by(sizes)} mm by its header; mend the header (pixdim)"
        )
    if sform:
        affine = np.asarray(raw.get_sform(), np.float64)
        if qform:
            notes += _compare_forms(path, affine, raw, voxels.shape)
    elif qform:
        affine = np.asarray(raw.get_qform(), np.float64)
    else:
        affine = _assumed(sizes, voxels.shape, orientation or "LAS")
        if not orientation:
            notes.append(f"{DOUBT}the file records no orientation, its axes are taken as LAS")
    oriented = sform or qform
    if orientation and oriented:
        notes.append(f"the file records its orientation, {orientation} is not used")
    scale, unit_notes = _unit(raw, voxel_sizes(affine)) if is_nifti else (1.0, [])
    affine[:3] *= scale
    return RawImage(voxels=voxels, affine=affine, oriented=oriented, notes=(*notes, *unit_notes))


def _assumed(sizes: np.ndarray, shape: tuple[int, ...], orientation: str) -> np.ndarray:
    """The affine of axes that run as told, the scanner's origin in the middle."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(tuple(orientation))):
        affine[int(world), axis] = sign * sizes[axis]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _compare_forms(path: str, sform: np.ndarray, raw: Any, shape: tuple[int, ...]) -> list[str]:
    """Refuse two placements that cannot both be meant, and note two that differ."""
    advice = "find out which holds and remove the other from the header"
    try:
        qform = np.asarray(raw.get_qform(), np.float64)
    except (ValueError, HeaderDataError):
        return [f"{DOUBT}the qform of its header is no rotation; the sform is taken"]
    ratio = voxel_sizes(sform) / np.maximum(voxel_sizes(qform), 1e-9)
    if max(ratio.max(), 1 / max(ratio.min(), 1e-9)) > MAX_SIZE_RATIO:
        raise ScanError(
            f"{path}: its voxels are {_by(voxel_sizes(sform))} mm by its sform, but "
            f"{_by(voxel_sizes(qform))} mm by its qform; {advice}"
        )
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise ScanError(
            f"{path}: sform and qform of its header mirror each other, so that left and right are "
            f"unsure; {advice}"
        )
    distance = corner_distance(sform, qform, shape)
    if distance > float(voxel_sizes(sform).max()) / 2:
        codes = f"codes {int(raw['sform_code'])} and {int(raw['qform_code'])}"
        return [f"sform and qform ({codes}) lie up to {distance:.1f} mm apart; the sform is taken"]
    return []


def corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm of a grid's corners by two affines."""
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm(corners @ (first - second)[:3].T, axis=1).max())


def _unit(raw: Any, sizes: np.ndarray) -> tuple[float, list[str]]:
    """Factor to millimetres, and what was assumed."""
    try:
        unit = raw.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    if unit == "unknown":
        return 1.0, ["the file states no unit of length, mm assumed"]
    if unit == "mm":
        return 1.0, []
    if _plausible(sizes * _MM[unit]):
        return _MM[unit], [f"lengths converted from {unit}"]
    if _plausible(sizes):
        return 1.0, [f"{DOUBT}the file states lengths in {unit}, which cannot be; mm assumed"]
    return _MM[unit], []


def _plausible(sizes: np.ndarray) -> bool:
    return bool(sizes.min() >= MIN_VOXEL_MM and sizes.max() <= MAX_VOXEL_MM)


def _check_affine(path: str, affine: np.ndarray) -> list[str]:
    sizes = voxel_sizes(affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * sizes.prod():
        rows = affine[:3].round(3).tolist()
        raise ScanError(f"{path}: its affine cannot be inverted: {rows}; mend the header")
    if not _plausible(sizes):
        raise ScanError(
            f"{path}: voxels of {_by(sizes)} mm, expected {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; mend "
            "the header"
        )
    axes = affine[:3, :3] / sizes
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    shear = float(np.rad2deg(np.arcsin(min(1.0, cosines.max()))))
    notes = []
    if shear > MAX_SHEAR_DEG:
        raise ScanError(
            f"{path}: two of its axes stand {90 - shear:.0f} degrees to each other, expected 90; "
            "resample it on a grid with right angles"
        )
    if shear > DOUBT_SHEAR_DEG:
        notes.append(f"{DOUBT}two axes stand {90 - shear:.0f} degrees to each other")
    slant = float(np.rad2deg(obliquity(affine).max()))
    if slant > DOUBT_OBLIQUE_DEG:
        notes.append(f"{DOUBT}its axes are turned by {slant:.0f} degrees, and stay so")
    return notes


def _by(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
