"""One NIfTI or Analyze file as it is: fetched, unpacked, and its header believed or refused.

Files come from public sets, hospitals and other people's scripts. What can be taken in one way only
is taken, with a note; what could mean two things or is damaged is refused with a reason.
"""

import gzip
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import imageglobals, nifti1, nifti2
from nibabel.affines import obliquity
from nibabel.arrayproxy import ArrayProxy
from nibabel.orientations import axcodes2ornt

from uadray import files
from uadray.errors import ScanError
from uadray.preparation.geometry import voxel_sizes
from uadray.preparation.headers import (
    PLACING,
    begin_of_voxels,
    by,
    is_nifti,
    mend,
    placing_of,
    qform_of,
)
from uadray.preparation.layouts.listing import is_special
from uadray.preparation.settings import DOUBT

MIN_VOXEL_MM, MAX_VOXEL_MM = 0.1, 10.0
"""Edge lengths that a scan of a head can have; outside, its header is wrong."""

MAX_SIZE_RATIO = 1.1
"""Largest ratio of the voxel sizes by sform and by qform; beyond it one of them is wrong."""

MAX_SHEAR_DEG, DOUBT_SHEAR_DEG = 10.0, 2.0
"""By how much the angle between two axes may differ from 90 degrees at all, and unremarked."""

DOUBT_OBLIQUE_DEG = 20.0
"""Axes may be turned so far from the scanner's without a remark: the grid is not turned back, so
that a head scanned at a slant stays so."""

SIZE_TOLERANCE = 0.01
"""Relative difference of the voxel sizes by sform and by pixdim that is not worth a note."""

MAGIC = (b"n+1\0", b"ni1\0", b"n+2\0", b"ni2\0")
"""How a NIfTI header says what it is; ITK reads one without as Analyze, where fields differ."""

MAX_ORIGIN_MM = 1e6
"""A first voxel that lies farther from the scanner's origin is the work of a damaged header."""

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
    placing: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a NIfTI header that place another image on this one's voxels for every reader:
    they differ in what they make of two forms, of none, of pixdim and of units, so that these go
    on as the file has them."""


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
    path, *beside = halves(path)
    content = _fetch(path)
    header = _fetch(beside[0]) if beside else content
    with _without_remarks():
        try:
            raw = _parse(path, content, header)
            mended, notes = mend(raw)
            voxels, more = _voxels(path, mended, content, header)
            placed = _place(path, mended, voxels, orientation)
            placing = placing_of(raw, mended)
        except ScanError:
            raise
        except Exception as error:  # whatever a library makes of bytes that mean nothing
            raise ScanError(
                f"{path}: expected a whole NIfTI file, but it cannot be read ({error}); fetch it "
                "again"
            ) from None
    all_notes = (*notes, *more, *placed.notes, *_check_affine(path, placed.affine))
    return replace(placed, notes=all_notes, placing=placing)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep nibabel's remarks on headers from the terminal: what matters is reported by us."""
    level = imageglobals.logger.level
    imageglobals.logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        imageglobals.logger.setLevel(level)


def halves(path: str) -> tuple[str, ...]:
    """The files of an image: its `.img` and `.hdr`, of which either was named, or the one file."""
    image = _half(path, "hdr", "img")
    header = _half(image, "img", "hdr")
    return (image,) if header == image else (image, header)


def _half(path: str, one: str, other: str) -> str:
    """The path of a pair's other file; the same path where it does not end as `one`."""
    match = re.search(rf"\.({one})(\.gz)?$", path, re.IGNORECASE)
    if match is None:
        return path
    ending = other.upper() if match[1].isupper() else other
    return f"{path[: match.start()]}.{ending}{match[2] or ''}"


def _fetch(path: str) -> bytes:
    """A file's content, unpacked."""
    if not files.is_remote(path) and is_special(path):
        raise ScanError(f"{path}: is no regular file, but a pipe, socket or device; give a file")
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
    if re.search(r"\.hdr(\.gz)?$", path, re.IGNORECASE):
        return "no such file, though its .img is there; an .img needs its .hdr beside it"
    return "no such file; look for it or leave the scan out"


def _parse(path: str, content: bytes, header: bytes) -> Any:
    """The header as it is; its extensions are left where they are, since nothing here needs them.

    Each of them may be damaged or of any length without a fault of the image.
    """
    if len(content) < 400 and content.startswith(_POINTERS):
        raise ScanError(
            f"{path}: holds a pointer of git-annex or Git LFS, not the image; fetch its content "
            "(`git annex get`, `git lfs pull`)"
        )
    size = {int.from_bytes(header[:4], order) for order in ("little", "big")}
    pair = header is not content
    kinds: dict[int, Any] = {
        348: nifti1.Nifti1PairHeader if pair else nib.Nifti1Header,
        540: nifti2.Nifti2PairHeader if pair else nib.Nifti2Header,
    }
    length = next((n for n in kinds if n in size), None)
    if length is None or len(header) < length:
        raise ScanError(
            f"{path}: expected a NIfTI file, but it begins with {header[:12]!r}; convert it, or "
            "fetch it again"
        )
    kind = kinds[length]
    if pair and length == 348 and header[344:347] != b"ni1":
        kind = nib.AnalyzeHeader
    raw = kind(header[:length], check=False)
    if is_nifti(raw) and raw["magic"].tobytes()[:4] not in MAGIC:
        raise ScanError(
            f"{path}: expected a NIfTI file, but its header has no magic of NIfTI "
            f"({raw['magic'].tobytes()!r}); convert it, or fetch it again"
        )
    _check_shape(path, tuple(int(n) for n in raw["dim"]))
    return raw


def _check_shape(path: str, dim: Sequence[int]) -> None:
    shape = tuple(dim[1 : max(0, min(dim[0], 7)) + 1])
    if min(shape, default=0) < 1:
        raise ScanError(
            f"{path}: expected one volume of three dimensions, but its header says {tuple(dim)} "
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


def _voxels(path: str, raw: Any, content: bytes, header: bytes) -> tuple[np.ndarray, list[str]]:
    """The scaled intensities, float32 (X, Y, Z)."""
    try:
        dtype = raw.get_data_dtype()
    except Exception:  # a code that nibabel does not know, or does not read
        raise ScanError(
            f"{path}: its header has data code {int(raw['datatype'])}, which is no type of voxels "
            "that can be read; convert it to float32 or int16"
        ) from None
    if dtype.names:
        raise ScanError(f"{path}: holds colours, expected one intensity per voxel")
    if dtype.kind == "c":
        raise ScanError(f"{path}: holds complex numbers; give their magnitude")
    shape = tuple(int(n) for n in raw.get_data_shape())
    expected = int(np.prod(shape)) * dtype.itemsize
    single = header is content
    first = len(raw.binaryblock) + 4 if single else 0
    begin, notes = begin_of_voxels(path, raw, content, first=first, expected=expected)
    there = len(content) - begin
    if there < expected:
        raise ScanError(
            f"{path}: expected a whole NIfTI file, but of {expected} bytes of voxels, which its "
            f"header says, {max(0, there)} are there; fetch it again"
        )
    if there >= expected + expected // shape[2]:
        raise ScanError(
            f"{path}: its header says {expected} bytes of voxels ({shape} of {dtype}), but "
            f"{there} are there: header and voxels belong to different images; export it again"
        )
    slope, inter = raw.get_slope_inter()
    scaling = (1.0 if slope is None else slope, 0.0 if inter is None else inter)
    proxy = ArrayProxy(BytesIO(content), (shape, dtype, begin, *scaling))
    return np.asarray(proxy, np.float32).reshape(shape[:3]), notes


def _place(path: str, raw: Any, voxels: np.ndarray, orientation: str) -> RawImage:
    """Choose the affine."""
    sizes = np.asarray(raw["pixdim"][1:4], np.float64)
    nifti = is_nifti(raw)
    sform = int(raw["sform_code"]) > 0 if nifti else False
    qform = int(raw["qform_code"]) > 0 if nifti else False
    notes: list[str] = []
    if not sform and not (np.isfinite(sizes).all() and sizes.all()):
        raise ScanError(
            f"{path}: its voxels are {by(sizes)} mm by its header; mend the header (pixdim)"
        )
    if sform:
        affine = np.asarray(raw.get_sform(), np.float64)
        if qform:
            notes += _compare_forms(path, affine, raw, voxels.shape)
        elif sizes.all() and not np.allclose(voxel_sizes(affine), sizes, rtol=SIZE_TOLERANCE):
            notes.append(
                f"{DOUBT}its voxels are {by(voxel_sizes(affine).round(4))} mm by its sform, which "
                f"is taken, but {by(sizes)} mm by pixdim: find out which holds"
            )
    elif qform:
        from_quaternion = qform_of(raw)
        if from_quaternion is None:
            raise ScanError(
                f"{path}: the qform of its header is no rotation (quaternion "
                f"{', '.join(f'{float(raw[name]):g}' for name in PLACING[2:5])}), and it has no "
                "sform; mend the header"
            )
        affine = from_quaternion
    else:
        affine = _assumed(sizes, voxels.shape, orientation or "LAS")
        if not orientation:
            notes.append(f"{DOUBT}the file records no orientation, its axes are taken as LAS")
    oriented = sform or qform
    if orientation and oriented:
        notes.append(f"the file records its orientation, {orientation} is not used")
    scale, unit_notes = _unit(raw, voxel_sizes(affine)) if nifti else (1.0, [])
    affine[:3] *= scale
    return RawImage(voxels=voxels, affine=affine, oriented=oriented, notes=(*notes, *unit_notes))


def _assumed(sizes: np.ndarray, shape: tuple[int, ...], orientation: str) -> np.ndarray:
    """The affine of axes that run as given, the scanner's origin in the middle."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(axcodes2ornt(tuple(orientation))):
        affine[int(world), axis] = sign * sizes[axis]
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _compare_forms(path: str, sform: np.ndarray, raw: Any, shape: tuple[int, ...]) -> list[str]:
    """Refuse two placements that cannot both be meant, and note two that differ."""
    advice = "find out which holds and take the other out of the header"
    qform = qform_of(raw)
    if qform is None:
        return [f"{DOUBT}the qform of its header is no rotation; the sform is taken"]
    ratio = voxel_sizes(sform) / np.maximum(voxel_sizes(qform), 1e-9)
    if max(ratio.max(), 1 / max(ratio.min(), 1e-9)) > MAX_SIZE_RATIO:
        raise ScanError(
            f"{path}: its voxels are {by(voxel_sizes(sform))} mm by its sform, but "
            f"{by(voxel_sizes(qform))} mm by its qform; {advice}"
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
    if float(np.abs(affine[:3, 3]).max()) > MAX_ORIGIN_MM:
        raise ScanError(
            f"{path}: its first voxel lies {np.abs(affine[:3, 3]).max():.3g} mm from the scanner's "
            f"origin, expected at most {MAX_ORIGIN_MM:g}; mend the header"
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * sizes.prod():
        rows = affine[:3].round(3).tolist()
        raise ScanError(f"{path}: its affine cannot be inverted: {rows}; mend the header")
    if not _plausible(sizes):
        raise ScanError(
            f"{path}: voxels of {by(sizes)} mm, expected {MIN_VOXEL_MM} to {MAX_VOXEL_MM}; mend "
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
