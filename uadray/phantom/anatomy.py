"""What phantom brains are made from: the MNI152 tissue maps, random fields, deformations.

Two coordinate frames, both in mm from the centre of the box, axes (x, y, z) = (right, anterior,
superior): *template* is where nilearn's tissue maps lie, *subject* is the deformed brain. Volumes
are (C, Z, Y, X) over the box, points are (N, 3). Random fields live on one fixed grid in subject
space, so that a subject is the same brain at every output size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
import scipy.fft
import scipy.ndimage as ndi

from uadray.lazy import torch

BOX_MM = np.array([158.0, 191.0, 163.0])
"""Extent (x, y, z) of the field of view in mm (Bengs 2021, section 2.1)."""

BOX_CENTRE_MNI = np.array([0.0, -18.0, 4.0])
"""MNI position of the box's centre in mm: the middle of the template brain's bounding box."""

FIELD_SHAPE = (64, 75, 64)
"""Grid (Z, Y, X) of the random fields, about 2.5 mm: fine enough for gyri of 15 mm and up."""

TEMPLATE_SHAPE = (109, 127, 105)
"""Grid (Z, Y, X) of the tissue maps, 1.5 mm: the template is an average, blurred over more."""

ROOT_SEED = 2021
"""Mixed into every seed, so that phantoms share no random stream with the rest of a run."""

CSF, GM, WM, BRAIN, DETAIL, DEPTH, CORTEX, CEREBELLUM, MIDLINE = range(9)


@dataclass(frozen=True, kw_only=True)
class Template:
    """Tissue maps of the reference brain over the box."""

    maps: np.ndarray
    """float32 (9, Z, Y, X): CSF, GM, WM and brain fractions in [0, 1], intensity residue of the
    template over its tissue means, depth below the brain's surface in mm, the weights in [0, 1]
    of cerebral cortex and of cerebellum, and the distance from the midline in mm."""
    inward: np.ndarray
    """float32 (3, Z, Y, X) on the field grid: direction towards the ventricles' middle, at most
    1 long; the brain is drawn along it when the ventricles widen."""


@dataclass(frozen=True, kw_only=True)
class Tissues:
    """Tissue fractions at N points; each array is float32 (N,)."""

    csf: np.ndarray
    """Cerebrospinal fluid, [0, 1]."""
    gm: np.ndarray
    """Grey matter, [0, 1]."""
    wm: np.ndarray
    """White matter, [0, 1]."""
    detail: np.ndarray
    """Intensity residue of the template where its own anatomy shows, about [-0.2, 0.2]."""


def sample(volume: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Interpolate channels linearly at points of the box.

    Args:
        volume: float32 (C, Z, Y, X) over the box.
        points: float32 (N, 3), (x, y, z) in mm from the box's centre; clamped to the box.

    Returns:
        float32 (C, N).
    """
    grid = torch.from_numpy(np.ascontiguousarray(points * np.float32(2.0 / BOX_MM), np.float32))
    out = torch.nn.functional.grid_sample(
        torch.from_numpy(volume)[None],
        grid[None, None, None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return out[0, :, 0, 0].numpy()


def axis_centres(num: int, extent_mm: float) -> np.ndarray:
    """Return the voxel centres along one axis, float32 (num,), in mm from the box's centre."""
    return (((np.arange(num) + 0.5) / num - 0.5) * extent_mm).astype(np.float32)


def grid_points(shape: tuple[int, int, int]) -> np.ndarray:
    """Return the voxel centres (x, y, z) of a (Z, Y, X) grid over the box, float32 (N, 3)."""
    z, y, x = (axis_centres(n, e) for n, e in zip(shape, BOX_MM[::-1], strict=True))
    zz, yy, xx = np.meshgrid(z, y, x, indexing="ij")
    return np.stack([xx.ravel(), yy.ravel(), zz.ravel()], axis=-1)


@lru_cache(maxsize=1)
def field_points() -> np.ndarray:
    """Return the points of the field grid, float32 (N, 3)."""
    return grid_points(FIELD_SHAPE)


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Build the reference brain from the files inside nilearn's package, once per process."""
    # The files are read by path: nilearn's loaders resample each map and rescale it by its own
    # maximum.
    from nilearn.datasets import struct

    paths = (struct.MNI152_FILE_PATH, struct.GM_MNI152_FILE_PATH, struct.WM_MNI152_FILE_PATH)
    points = grid_points(TEMPLATE_SHAPE)
    t1, gm, wm = (_resample_to_box(nib.load(path), points) for path in paths)
    brain = ndi.binary_fill_holes(ndi.binary_opening((t1 > 0.02) | (gm + wm > 0.5)))
    labels, _ = ndi.label(brain)
    brain = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    total = np.maximum(gm + wm, 1.0)
    gm, wm = gm / total * brain, wm / total * brain
    csf = np.clip(brain - gm - wm, 0.0, 1.0)
    means = [float((t1 * p**2).sum() / (p**2).sum()) for p in (csf, gm, wm)]
    detail = (t1 - means[0] * csf - means[1] * gm - means[2] * wm) * brain
    spacing = BOX_MM[::-1] / TEMPLATE_SHAPE
    depth = ndi.distance_transform_edt(brain, sampling=spacing)
    cortex, cerebellum = _parcellate(points)
    midline = np.abs(points[:, 0] + BOX_CENTRE_MNI[0]).reshape(TEMPLATE_SHAPE)
    maps = np.stack([csf, gm, wm, brain, detail, depth, cortex, cerebellum, midline])
    ventricles = ndi.binary_opening((csf > 0.5) & (depth > 22.0))
    return Template(maps=maps.astype(np.float32), inward=_inward(ventricles.astype(np.float32)))


def _resample_to_box(image: Any, points: np.ndarray) -> np.ndarray:
    """Bring an MNI map to the box at 1.5 mm, float32 (Z, Y, X) in [0, 1], 0 outside the map."""
    voxels = np.asanyarray(image.dataobj).astype(np.float32)
    # A light low-pass stands for the area of the larger voxel.
    voxels = ndi.gaussian_filter(voxels / voxels.max(), 0.45, mode="constant")
    # Spelled out, not `@`: a BLAS may sum in another order on another number of threads.
    rows = np.linalg.inv(image.affine)[:3]
    index = [((points + BOX_CENTRE_MNI) * row[:3]).sum(axis=1) + row[3] for row in rows]
    out = ndi.map_coordinates(voxels, index, order=1, mode="constant")
    return np.asarray(out, np.float32).reshape(TEMPLATE_SHAPE)


def _parcellate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weigh cerebral cortex and cerebellum by position; brainstem is neither.

    The tentorium is taken as a roof that falls off to the back and to the sides, read off the
    template's own slices. Good to a few mm, which is what folding by depth needs.
    """
    x, y, z = (points + BOX_CENTRE_MNI).astype(np.float32).T
    roof = -4.0 - 0.32 * np.abs(x) - 0.28 * np.maximum(-45.0 - y, 0.0)
    below = sigmoid((roof - z) / 1.5)
    posterior = sigmoid((-38.0 + 0.25 * (z + 20.0) - y) / 2.0)
    stem = sigmoid((22.0 - np.abs(x)) / 1.5) * sigmoid((-8.0 - z) / 2.0) * sigmoid((-8.0 - y) / 2.0)
    cerebellum = below * posterior
    cortex = (1.0 - cerebellum) * (1.0 - stem)
    return cortex.reshape(TEMPLATE_SHAPE), cerebellum.reshape(TEMPLATE_SHAPE)


def _inward(ventricles: np.ndarray) -> np.ndarray:
    """Return the gradient of the blurred ventricles on the field grid, at most 1 long."""
    spacing = BOX_MM[::-1] / TEMPLATE_SHAPE
    blurred = ndi.gaussian_filter(ventricles, 6.0 / spacing)
    gradient = np.stack(np.gradient(blurred, *spacing)[::-1]).astype(np.float32)
    gradient /= np.sqrt((gradient**2).sum(0)).max()
    return sample(gradient, field_points()).reshape(3, *FIELD_SHAPE)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), safe at any size of x."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


@lru_cache(maxsize=1)
def wavenumber() -> tuple[np.ndarray, np.ndarray]:
    """Return |k| and |k_z| in cycles per mm on the half spectrum of the field grid."""
    nz, ny, nx = FIELD_SHAPE
    kz = scipy.fft.fftfreq(nz, BOX_MM[2] / nz)[:, None, None]
    ky = scipy.fft.fftfreq(ny, BOX_MM[1] / ny)[None, :, None]
    kx = scipy.fft.rfftfreq(nx, BOX_MM[0] / nx)[None, None, :]
    radius = np.sqrt(kz**2 + ky**2 + kx**2).astype(np.float32)
    return radius, np.broadcast_to(np.abs(kz), radius.shape).astype(np.float32)


def gaussian_field(rng: np.random.Generator, spectrum: np.ndarray) -> np.ndarray:
    """Draw a Gaussian random field with the given amplitude spectrum and unit variance.

    Args:
        rng: source of the spectrum's phases.
        spectrum: float32 amplitude on the half spectrum of the field grid.

    Returns:
        float32 (Z, Y, X) on the field grid, mean 0, variance 1.
    """
    shape = (*spectrum.shape, 2)
    noise = rng.standard_normal(shape, dtype=np.float32).view(np.complex64)[..., 0]
    noise *= spectrum
    noise[0, 0, 0] = 0.0
    field = scipy.fft.irfftn(noise, s=FIELD_SHAPE, workers=1, overwrite_x=True)
    return np.asarray(field / field.std(), np.float32)


def band_spectrum(wavelength_mm: float, width: float = 0.25) -> np.ndarray:
    """Return the amplitude of fields of about one wavelength: blobs and folds of equal size."""
    radius, _ = wavenumber()
    return np.exp(-0.5 * ((radius * wavelength_mm - 1.0) / width) ** 2)


def smooth_spectrum(wavelength_mm: float) -> np.ndarray:
    """Return the amplitude of fields of this wavelength and longer, Gaussian in wavenumber."""
    radius, _ = wavenumber()
    return np.exp(-0.5 * (radius * wavelength_mm) ** 2)


def folia_spectrum() -> np.ndarray:
    """Return the amplitude of the field that folds the cerebellum."""
    radius, kz = wavenumber()
    # Folia lie flat: keep the wave vectors within about 35 degrees of the vertical.
    upright = np.exp(-0.5 * (np.arccos(np.clip(kz / np.maximum(radius, 1e-6), 0, 1)) / 0.6) ** 2)
    return np.asarray(band_spectrum(9.0) * upright)


def mixed_spectrum(
    sigmas: Sequence[float], wavelengths_mm: Sequence[float]
) -> tuple[float, np.ndarray]:
    """Return standard deviation and amplitude of a sum of smooth fields.

    Args:
        sigmas: standard deviation of each.
        wavelengths_mm: wavelength of each in mm, see `smooth_spectrum`.
    """
    power = np.zeros_like(wavenumber()[0])
    for sigma, wavelength in zip(sigmas, wavelengths_mm, strict=True):
        band = smooth_spectrum(wavelength) ** 2
        power += np.float32(sigma**2) * band / band.sum()
    return float(np.linalg.norm(sigmas)), np.sqrt(power)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """A subject's smooth fields on the field grid."""

    warp: np.ndarray
    """float32 (3, Z, Y, X): template point minus subject point, mm."""
    fold: np.ndarray
    """float32 (3, Z, Y, X), the folding of cortex, the width of its sulci and the folding of the
    cerebellum, each of mean 0 and variance 1. In version 1 the first and the last are signed
    distances to the nearest sulcal sheet in mm."""


def pose(scale: Sequence[float], angles: tuple[float, float, float]) -> np.ndarray:
    """Return the template points, float32 (N, 3), of the field grid in a turned, resized brain.

    Args:
        scale: size relative to the template along x, y, z.
        angles: about x, y, z in radians.
    """
    points = field_points()
    matrix = (np.diag(1.0 / np.array(scale)) @ _rotation(angles)).astype("f4")
    return np.stack([(points * row).sum(axis=1) for row in matrix], axis=1)


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def widen_ventricles(mapped: np.ndarray, distance_mm: float, template: Template) -> np.ndarray:
    """Draw the brain towards the ventricles' middle, and return the whole deformation.

    Args:
        mapped: float32 (N, 3), template points of the field grid; changed in place.
        distance_mm: how far the walls move outward; negative narrows the ventricles.
        template: the reference brain.

    Returns:
        float32 (3, Z, Y, X): template point minus subject point, mm.
    """
    # Two half steps keep the map one to one: a single long one would overshoot the midline.
    half = np.float32(0.5 * distance_mm)
    step = sample(template.inward, mapped)
    mapped += half * step.T
    near = np.abs(step).max(axis=0) > 1e-3
    mapped[near] += half * sample(template.inward, mapped[near]).T
    return np.ascontiguousarray((mapped - field_points()).T).reshape(3, *FIELD_SHAPE)


def maps_on_field_grid(template: Template, warp: np.ndarray) -> np.ndarray:
    """Return the template's maps at the field grid's points, float32 (9, N), 0 off the brain."""
    mapped = field_points() + warp.reshape(3, -1).T
    inside = sample(template.maps[BRAIN : BRAIN + 1], mapped)[0] > 0.0
    maps = np.zeros((len(template.maps), len(mapped)), np.float32)
    maps[:, inside] = sample(template.maps, mapped[inside])
    return maps
