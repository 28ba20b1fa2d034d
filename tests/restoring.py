"""What the methods that restore with a U-Net have in common, checked in each one's own tests."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import tiny
from torch import Tensor

from uadray import random
from uadray.methods import build
from uadray.methods.unet import UNetDetector

SHAPE = (16, 16, 16)


def made(name: str, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Any:
    """The method at a size that learns in seconds."""
    torch.manual_seed(0)
    detector = build(replace(tiny(name).method, **changes), shape)
    assert isinstance(detector, UNetDetector)
    return detector


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small networks are the faster for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples(detector: Any, num: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Random images with a border, the numbers of each sample, and where the brain is."""
    spatial = detector.spatial
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(num, 1, *spatial, generator=generator) * 0.8 + 0.1
    x[:, :, :3], x[..., -2:] = 0, 0
    noise = random.normal(random.keys(0, 0, torch.arange(num), random.LATENT), detector.num_noise)
    return x, noise, x > 0


def check_samples_are_alone(detector: Any) -> None:
    """A sample's loss follows from it and from its own numbers, whoever else is in the batch.

    So any split over workers and micro-batches learns the same.
    """
    x, noise, _ = samples(detector)
    whole = detector(x, x, noise)
    parts = [detector(x[k : k + 1], x[k : k + 1], noise[k : k + 1]) for k in range(len(x))]
    assert whole.keys() == parts[0].keys()
    for name, value in whole.items():
        mean = torch.stack([part[name] for part in parts]).mean()
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-6)
    other = detector(x, x, noise.flip(0))["loss"]
    assert not torch.equal(other, whole["loss"])


def check_bfloat16(detector: Any) -> None:
    """Convolutions in bfloat16 lose and score nearly as in float32, which all sums stay in."""
    x, noise, brain = samples(detector)
    wanted = detector(x, x, noise)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(x, x, noise)
        losses["loss"].backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, wanted[name], rtol=0.05, atol=5e-3)
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    detector.eval()
    volumes, inside = (t[:, 0][None, None, :1] if detector.ndim == 2 else t for t in (x, brain))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = detector.anomaly_map(volumes, inside[:, 0])
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


def check_brain_alone(detector: Any) -> None:
    """Outside the brain nothing is restored, by mask or by what is above 0."""
    x, _, brain = samples(detector)
    volumes, inside = (t.transpose(0, 1)[None] if detector.ndim == 2 else t for t in (x, brain))
    volumes, inside = (t[:, 0] if t.ndim == 6 else t for t in (volumes, inside))
    detector.eval()
    with torch.no_grad():
        detection = detector.detect(volumes, inside[:, 0])
        plain = detector.reconstruct(volumes)
    assert detection.reconstruction is not None
    assert not detection.reconstruction[~inside].any()
    torch.testing.assert_close(plain * inside, detection.reconstruction, rtol=1e-4, atol=1e-5)


def check_onnx(detector: Any) -> None:
    """The reconstruction runs as ONNX, with the same values."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from uadray.prediction.onnx_export import reconstruction_onnx

    content = reconstruction_onnx(detector.eval(), SHAPE)
    x = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    x[:, :, :3] = 0
    (output,) = runtime.InferenceSession(content).run(None, {"image": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, detector.reconstruct(x).numpy(), atol=1e-4)
