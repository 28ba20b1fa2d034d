"""What a NIfTI or Analyze header says, put right where it can mean one thing only.

The standard and other readers (nibabel, ITK) are followed where they agree; where they do not, the
fields go on to the results as they are, so that each reader lays these on the scan.
"""

from typing import Any

import numpy as np

from uadray.errors import ScanError
from uadray.preparation.settings import DOUBT

MAX_QUATERNION = 0.01
"""By how much the squares of a quaternion may sum to more than 1 for it to be taken as a rotation
that was rounded."""

PLACING = (
    "qform_code",
    "sform_code",
    *(f"quatern_{axis}" for axis in "bcd"),
    *(f"qoffset_{axis}" for axis in "xyz"),
    *(f"srow_{axis}" for axis in "xyz"),
)
"""Fields of a header that say where its voxels lie, besides `pixdim` and `xyzt_units`."""


def is_nifti(raw: Any) -> bool:
    """Whether a header is NIfTI's and no Analyze header."""
    return "sform_code" in raw.keys()  # noqa: SIM118  (a header is no dictionary)


def mend(raw: Any) -> tuple[Any, list[str]]:
    """A header with what the standard, and other readers, take in one way only put right."""
    mended, notes = raw.copy(), []
    sizes = np.asarray(raw["pixdim"][1:4])
    if (sizes < 0).any():
        notes.append(
            f"{DOUBT}voxel sizes below 0 in its header ({by(sizes)}), taken as positive, and some "
            "readers mirror such an axis: compare left and right"
        )
        mended["pixdim"][1:4] = np.abs(sizes)
    if not is_nifti(raw):
        return mended, notes
    qfac = float(raw["pixdim"][0])
    mended["pixdim"][0] = -1 if qfac < 0 else 1
    if qfac not in (-1, 1) and int(raw["qform_code"]) > 0:
        doubt = DOUBT if qfac < 0 else ""
        notes.append(f"{doubt}qfac of its header is {qfac:g}, taken as {mended['pixdim'][0]:g}")
    quaternion = np.array([float(raw[f"quatern_{axis}"]) for axis in "bcd"])
    excess = float((quaternion**2).sum()) - 1
    # Rounding that nibabel takes is left as it is.
    rounding = 3 * np.finfo(raw["quatern_b"].dtype).eps
    if rounding < excess <= MAX_QUATERNION and int(raw["qform_code"]) > 0:
        for axis, value in zip("bcd", quaternion / np.sqrt(1 + excess), strict=True):
            mended[f"quatern_{axis}"] = value
        notes.append(f"the quaternion of its header is too long by {excess:.1g}, shortened to 1")
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not np.isfinite(slope):
        notes.append(f"scl_slope of its header is {slope:g}: intensities are taken unscaled")
    elif slope and not np.isfinite(inter):
        notes.append(f"scl_inter of its header is {inter:g}, taken as 0")
        mended["scl_inter"] = 0
    return mended, notes


def placing_of(raw: Any, mended: Any) -> dict[str, Any]:
    """See `RawImage.placing`.

    A size below 0 stays, and so does an odd qfac: some readers mirror by them, and have to do so
    with both images.
    """
    pixdim = list(map(float, raw["pixdim"][:4]))
    if not is_nifti(raw):
        return {"pixdim": [1.0, *pixdim[1:]], "sform_code": 0, "qform_code": 0}
    fields = {name: np.array(mended[name]).tolist() for name in PLACING}
    # NIfTI-2 has room for larger codes than NIfTI-1; only whether one is above 0 matters.
    for name in ("qform_code", "sform_code"):
        fields[name] = int(np.clip(fields[name], 0, 2**15 - 1))
    if int(mended["qform_code"]) > 0 and qform_of(mended) is None:
        fields |= {name: 0 for name in PLACING if name.startswith("q")}
    unit = int(raw["xyzt_units"]) & 7
    return fields | {"pixdim": pixdim, "xyzt_units": unit if unit in (1, 3) else 2}


def qform_of(raw: Any) -> np.ndarray | None:
    """The affine of a mended header's qform, (4, 4); None where it is none."""
    try:
        affine = np.asarray(raw.get_qform(), np.float64)
    except Exception:  # no rotation; nibabel raises what NumPy raises
        return None
    return affine if np.isfinite(affine).all() else None


def begin_of_voxels(
    path: str, raw: Any, content: bytes, *, first: int, expected: int
) -> tuple[int, list[str]]:
    """The byte where the voxels begin, which lies neither in the header nor in its extensions.

    Args:
        path: For messages.
        raw: The header.
        content: Of the file with the voxels.
        first: The byte after the header and its four bytes on extensions; 0 in a pair.
        expected: Bytes of voxels.
    """
    recorded = float(raw["vox_offset"])
    offset = int(recorded) if np.isfinite(recorded) and recorded >= 0 else -1
    ends = _extension_ends(raw, content, first)
    single = first > 0
    fits = offset >= first and len(content) - offset == expected
    is_free = offset >= first and not any(offset < end for end in ends)
    if fits or (is_free and (single or len(content) != expected)):
        return offset, []
    # The file's size leaves one place; older writers have no four bytes on extensions.
    for place in (*ends, first, max(0, first - 4)):
        if len(content) - place == expected:
            return place, [f"voxels begin at byte {recorded:g} by its header, taken as {place}"]
    raise ScanError(
        f"{path}: its header says that the voxels begin at byte {recorded:g}, which lies in the "
        f"header itself or its extensions, and the size of the file ({len(content)} bytes, "
        f"{expected} of them voxels) does not say where they do; export it again"
    )


def _extension_ends(raw: Any, content: bytes, first: int) -> list[int]:
    """Where each of the extensions after a header ends that are whole and of a legal size."""
    ends: list[int] = []
    if not first or len(content) < first or not content[first - 4]:
        return ends
    order = "big" if raw.endianness == ">" else "little"
    place = first
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4], order)  # type: ignore[arg-type]
        if size < 16 or size % 16 or place + size > len(content):
            break
        place += size
        ends.append(place)
    return ends


def by(sizes: np.ndarray) -> str:
    """Sizes with a cross between them, for messages."""
    return " x ".join(f"{size:g}" for size in sizes)
