"""Masks of many values: labels, percent, or pictures."""

import numpy as np
import pytest

from uadray.errors import ScanError
from uadray.preparation.masks import _check_labels


def values(levels: np.ndarray) -> np.ndarray:
    return np.resize(levels, (16, 16, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "levels",
    [np.arange(2), np.array([0, 255]), np.arange(40), np.array([0, 4, 2035]), np.zeros(1)],
    ids=["binary", "byte", "numbered lesions", "an atlas", "empty"],
)
def test_labels(levels: np.ndarray) -> None:
    assert _check_labels("mask.nii", values(levels)) == []


@pytest.mark.parametrize(
    "levels",
    [np.arange(101), np.arange(256), np.arange(0, 3000, 20)],
    ids=["percent", "all bytes", "a picture of 16 bits, or a large atlas"],
)
def test_what_may_be_no_labels_is_noted(levels: np.ndarray) -> None:
    (note,) = _check_labels("mask.nii", values(levels))
    assert f"mask.nii has {len(levels)} labels, and each but 0 counts" in note


def test_a_picture_is_refused() -> None:
    levels = np.delete(np.arange(200), [3, 77])
    with pytest.raises(ScanError, match="it has 198 values up to 199, as a picture has"):
        _check_labels("mask.nii", values(levels))
