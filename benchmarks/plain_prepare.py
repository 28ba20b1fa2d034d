"""The default steps of `uadray.preparation` as plain scripts over MONAI and TorchIO.

As their users would write them: one scan after the other, the libraries' own transforms where they
have one, SimpleITK's curvature flow and NumPy's percentiles where they have none.
"""

from collections.abc import Callable
from typing import Any

import monai.transforms as mt
import numpy as np
import scipy.ndimage as ndi
import SimpleITK as sitk
import torch
import torchio as tio
from monai.data import MetaTensor

from uadray.preparation.geometry import Volume
from uadray.preparation.settings import PrepareConfig


def curvature_flow(image: np.ndarray, time_step: float = 0.125, iterations: int = 3) -> np.ndarray:
    """SimpleITK's, on a volume of 1 mm voxels."""
    flow = sitk.CurvatureFlow(
        sitk.GetImageFromArray(image), timeStep=time_step, numberOfIterations=iterations
    )
    return np.asarray(sitk.GetArrayFromImage(flow))


def _brain(image: np.ndarray) -> np.ndarray:
    return np.asarray(ndi.binary_fill_holes(image > 0), np.float32)


def _standardise(image: np.ndarray, brain: np.ndarray, config: PrepareConfig) -> np.ndarray:
    low, high = np.percentile(image[brain], config.percentiles)
    return np.asarray(np.where(brain, np.clip((image - low) / (high - low), 0, 1), 0), np.float32)


def monai_resample(volume: Volume) -> None:
    """Spacing: the image by a cubic spline, the mask linearly."""
    for array, mode in ((volume.image, 3), (volume.brain.astype(np.float32), "bilinear")):
        spacing = mt.Spacing(pixdim=(1.0, 1.0, 1.0), mode=mode, padding_mode=_MONAI_BORDER[mode])
        spacing(MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(volume.affine)))


_MONAI_BORDER: dict[Any, str] = {3: "mirror", "bilinear": "border"}


def torchio_resample(volume: Volume) -> None:
    """Resample: the image by SimpleITK's B-spline, the mask linearly."""
    _torchio_resampled(volume.image, volume.brain.astype(np.float32), volume.affine)


def _torchio_resampled(image: np.ndarray, brain: np.ndarray, affine: np.ndarray) -> tio.Subject:
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image[None]), affine=affine),
        brain=tio.LabelMap(tensor=torch.from_numpy(brain[None]), affine=affine),
    )
    resample = tio.Resample(1.0, image_interpolation="bspline", label_interpolation="linear")
    return resample(subject)


def scipy_resample(volume: Volume) -> None:
    """scipy.ndimage.zoom, the fastest way in SciPy."""
    for array, order in ((volume.image, 3), (volume.brain.astype(np.float32), 1)):
        ndi.zoom(array, volume.spacing, order=order, mode="mirror", grid_mode=False)


def monai_whole(path: str, config: PrepareConfig) -> np.ndarray:
    """From a file to (Z, Y, X) by MONAI's dictionary transforms."""

    def add_brain(data: dict[str, Any]) -> dict[str, Any]:
        brain = torch.from_numpy(_brain(data["image"][0].numpy())[None])
        return data | {"brain": MetaTensor(brain, affine=data["image"].affine)}

    def intensity(data: dict[str, Any]) -> dict[str, Any]:
        image, brain = data["image"][0].numpy(), data["brain"][0].numpy() >= 0.5
        smooth = curvature_flow(np.where(brain, image, 0))
        affine = data["image"].affine
        return {
            "image": MetaTensor(
                torch.from_numpy(_standardise(smooth, brain, config)[None]), affine=affine
            ),
            "brain": MetaTensor(torch.from_numpy(brain[None]), affine=affine),
        }

    keys = ("image", "brain")
    x, y, z = config.extent.voxels(1.0)
    steps = mt.Compose(
        [
            mt.LoadImaged(keys="image", ensure_channel_first=True),
            add_brain,
            mt.Orientationd(keys=keys, axcodes="RAS"),
            mt.Spacingd(
                keys=keys,
                pixdim=(1.0, 1.0, 1.0),
                mode=(3, "bilinear"),
                padding_mode=("mirror", "border"),
            ),
            intensity,
            mt.CropForegroundd(keys=keys, source_key="brain"),
            mt.SpatialPadd(keys=keys, spatial_size=(x, y, z)),
            mt.Resized(keys="image", spatial_size=config.shape[::-1], mode="area"),
        ]
    )
    return np.asarray(steps({"image": path})["image"][0].numpy().T)


def torchio_whole(path: str, config: PrepareConfig) -> np.ndarray:
    """From a file to (Z, Y, X) by TorchIO's transforms."""
    image = tio.ToCanonical()(tio.ScalarImage(path))
    array = image.data[0].numpy().astype(np.float32)
    subject = _torchio_resampled(array, _brain(array), image.affine)
    brain = subject["brain"].data[0].numpy() >= 0.5
    smooth = curvature_flow(np.where(brain, subject["image"].data[0].numpy(), 0))
    subject["image"].set_data(torch.from_numpy(smooth[None]))
    subject["brain"].set_data(torch.from_numpy(brain[None].astype(np.float32)))
    steps = tio.Compose(
        [
            tio.RescaleIntensity((0, 1), percentiles=config.percentiles, masking_method="brain"),
            tio.Mask("brain"),
            tio.CropOrPad(config.extent.voxels(1.0), mask_name="brain"),
            tio.Resize(config.shape[::-1]),
        ]
    )
    return np.asarray(steps(subject)["image"].data[0].numpy().T)


RESAMPLE: dict[str, Callable[[Volume], None]] = {
    f"MONAI {mt.Spacing.__name__}": monai_resample,
    f"TorchIO {tio.Resample.__name__}": torchio_resample,
    "scipy.ndimage.zoom": scipy_resample,
}
"""Resampling of a canonical volume's image and brain mask to 1 mm."""

WHOLE: dict[str, Callable[[str, PrepareConfig], np.ndarray]] = {
    "plain script with MONAI": monai_whole,
    "plain script with TorchIO": torchio_whole,
}
"""From a stripped scan's file to the volume that is stored."""
