"""Fits of small networks on arrays, in this process and without Ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_cohorts import SHAPE
from torch import Tensor

from uadray.config import Experiment
from uadray.data.batch import Batch
from uadray.methods import GradientDetector, build
from uadray.runs.checkpoint import CheckpointStore
from uadray.train.fit import Fit
from uadray.train.steps import Metrics


def made_images(num: int) -> Tensor:
    """Volumes with air below, (num, *SHAPE) float16."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(num, *SHAPE, generator=generator) * 0.6 + 0.2
    images[:, :3] = 0
    return images.half()


def fresh(what: Experiment) -> GradientDetector:
    """The network of an experiment as its fit begins."""
    torch.manual_seed(what.fit.seed)
    detector = build(what.method, SHAPE)
    assert isinstance(detector, GradientDetector)
    return detector


def cut(images: Tensor, ids: list[int], size: int) -> list[Batch]:
    """Samples of a worker in the order given, in batches."""
    parts = torch.tensor(ids).split(size)
    return [Batch(ids=part, images=images[part]) for part in parts]


def fit_arrays(
    what: Experiment,
    images: Tensor,
    folder: Path,
    *,
    batches: Callable[[int], list[Batch]] | None = None,
    **options: Any,
) -> tuple[GradientDetector, list[Metrics]]:
    """The network and its records; every epoch goes over all images in order by default."""
    detector = options.pop("detector", None) or fresh(what)
    whole = cut(images, list(range(len(images))), what.fit.batch_size)
    records = Fit(
        detector=detector,
        experiment=what,
        train=batches or (lambda epoch: whole),
        validation=[Batch(ids=torch.arange(4), images=images[:4])],
        checkpoints=CheckpointStore(str(folder), what.fingerprint),
        records=options.pop("past", []),
        device=torch.device("cpu"),
        **options,
    ).run()
    return detector, records
