"""What erasing costs: every strategy and fill against a plain copy, and against MONAI.

python -m benchmarks.erasing            about 2 minutes on one core
python -m benchmarks.erasing --quick    few rounds, to see that it runs; keeps nothing

Volumes of 64^3 and slices of 64^2, float32, batches of 32, probability .5, one thread. The sides of
a round run in turn on the same batch, and figures are medians over rounds. MONAI's
RandCoarseDropout (`pip install -e '.[bench]'`) gets a copy of the batch and the very boxes that
ours drew, and has to erase the same voxels. Its noise is uniform between the image's extremes; ours
has the image's own distribution.
"""

import statistics
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Row, main, on_each_in_turns
from uadray.data.erasing import Erasing, erase, erased_boxes, erased_mask, sample_erasing
from uadray.phantom import make_subject
from uadray.strategies import BENGS, ErasingConfig

BATCH = 32
FILLS = ("zero", "noise")
SEED = 0


def rows(quick: bool) -> list[Row]:
    """Microseconds per sample for each strategy and fill; `quick` takes few rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        volumes = _volumes(2 if quick else 8)
        measured = []
        for ndim, x in ((3, volumes), (2, volumes[:, 32].contiguous())):
            for strategy in BENGS:
                for fill in FILLS:
                    config = ErasingConfig(strategy=strategy, fill=fill)  # type: ignore[arg-type]
                    measured += _measure(config, x, rounds=4 if quick else 60, ndim=ndim)
        return measured
    finally:
        torch.set_num_threads(threads)


def _volumes(num: int) -> Tensor:
    """A batch of phantom brains, (32, 64, 64, 64) float32; some are there more than once."""
    brains = np.stack([make_subject("healthy", seed, 64).image for seed in range(num)])
    return torch.from_numpy(np.resize(brains, (BATCH, *brains.shape[1:])).astype(np.float32))


def _measure(config: ErasingConfig, x: Tensor, *, rounds: int, ndim: int) -> list[Row]:
    ids, spatial = torch.arange(BATCH), tuple(x.shape[1:])
    buffer = torch.empty_like(x)
    drawn: list[Erasing] = []

    def ours(epoch: int, out: Tensor | None = None) -> None:
        where = sample_erasing(config, ids, seed=SEED, epoch=epoch, spatial=spatial)
        drawn[:] = [where]
        erase(x, where, config, ids, seed=SEED, epoch=epoch, out=out)

    sides: dict[str, Callable[[int], object]] = {
        "copy": lambda epoch: x.clone(),
        "ours": ours,
        "ours into a buffer": lambda epoch: ours(epoch, buffer),
    }
    if find_spec("monai"):
        monai = Monai(config.fill)
        monai.check(config, x, ids)
        sides["monai"] = lambda epoch: monai(x, drawn[0])
    seconds = on_each_in_turns(sides, range(rounds + 2), warm_up=2)
    each = {name: statistics.median(values) / BATCH * 1e6 for name, values in seconds.items()}
    label = f"{ndim}D {config.strategy} {config.fill}"
    unit, what = "us", "volume" if ndim == 3 else "slice"
    detail = f"copy {each['copy']:.1f} us; {each['ours into a buffer']:.1f} us into a kept buffer"
    measured = [Row(f"erase, {label}, per {what}", each["ours"], unit, detail=detail)]
    if ndim == 3:
        measured.append(
            Row(
                f"erase, {label}",
                each["ours"] / each["copy"],
                "ratio",
                against="a copy of the batch",
            )
        )
    if "monai" in each:
        measured.append(
            Row(
                f"erase, {label}",
                each["monai"] / each["ours"],
                "ratio",
                against="MONAI RandCoarseDropout on the same boxes",
                detail=f"{each['monai']:.1f} us; above 1: ours is faster",
            )
        )
    return measured


class Monai:
    """RandCoarseDropout over a batch, on boxes that it is given.

    It draws its own as well, as it would in use, and then gets ours, so that both erase the same.
    """

    def __init__(self, fill: str) -> None:
        from monai.transforms import RandCoarseDropout

        self._transform: Any = RandCoarseDropout(
            holes=1, spatial_size=32, fill_value=0.0 if fill == "zero" else None, prob=1.0
        )

    def check(self, config: ErasingConfig, x: Tensor, ids: Tensor) -> None:
        """Compare ours with it: the same voxels, and with zeros the same bits."""
        where = sample_erasing(config, ids, seed=SEED, epoch=0, spatial=tuple(x.shape[1:]))
        ours = erase(x, where, config, ids, seed=SEED, epoch=0)
        theirs = self(x, where)
        assert not torch.equal(theirs, x)
        if config.fill == "noise":
            inside = torch.from_numpy(erased_mask(x, where))
            ours, theirs = ours.masked_fill(inside, 0), theirs.masked_fill(inside, 0)
        assert torch.equal(ours, theirs), f"{config}: MONAI erases other voxels"

    def __call__(self, x: Tensor, erasing: Erasing) -> Tensor:
        """The batch, erased."""
        out = x.clone()  # it works in place, and the target must stay clean
        boxes = erased_boxes(x, erasing)
        for b in np.flatnonzero(erasing.erased):
            sample = out[b][None]
            self._transform.randomize(sample.shape[1:])
            self._transform.hole_coords = [
                (slice(None), *(slice(int(start), int(stop)) for start, stop in box))
                for box in boxes[b]
                if (box[:, 0] < box[:, 1]).all()
            ]
            self._transform(sample, randomize=False)
        return out


if __name__ == "__main__":
    main("erasing", lambda quick, _: rows(quick))
