"""The steps of a fit: one optimiser, or several players who take turns on each batch."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from uadray import random
from uadray.config import Experiment, FitConfig
from uadray.data.batch import Batch, on_device
from uadray.data.erasing import (
    ErasedShares,
    Erasing,
    StaticErasing,
    erase,
    erased_boxes,
    erased_counts,
    sample_erasing,
)
from uadray.methods.base import GradientDetector, Player
from uadray.strategies import NONE
from uadray.train.graph import Repeated, Tensors

Metrics = dict[str, Any]
"""The record of an epoch."""
Sums = dict[str, Tensor]
"""What adds up over samples and workers, float64, by name: see `means`."""

ACTIVE_NATS = 0.01
"""A unit of the latent is active where its KL divergence is larger, on average over an epoch."""

AHEAD = 8
"""Batches that a GPU's fit draws for at once: drawn one by one, they hold up the next launch."""

_SHARED = ("reconstruction", "kl", "kl_units")
"""Terms that mean the same for every player; others bear their player's name."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The workers of a fit; alone by default."""

    rank: int = 0
    """This worker."""
    size: int = 1
    """Number of workers."""
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module
    """Makes a module with one optimiser average its gradients over the workers."""
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Sum over the workers; it may overwrite its argument."""


def make_optimizers(
    detector: GradientDetector, fit: FitConfig, *, capturable: bool = False
) -> dict[str, torch.optim.Optimizer]:
    """The optimiser of each player, by its name; a CUDA graph needs `capturable` ones."""
    return {player.name: _optimizer(player, fit, capturable) for player in detector.players()}


def _optimizer(player: Player, fit: FitConfig, capturable: bool) -> torch.optim.Optimizer:
    rate = player.learning_rate or fit.learning_rate
    if player.optimizer == "rmsprop":
        return torch.optim.RMSprop(player.parameters, lr=rate, capturable=capturable)
    return torch.optim.Adam(
        player.parameters, lr=rate, betas=player.betas, fused=True, capturable=capturable
    )


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The optimisers' steps of a fit."""

    detector: GradientDetector
    module: nn.Module
    """The detector; one with a single player compiled and averaged over the workers."""
    optimizers: dict[str, torch.optim.Optimizer]
    experiment: Experiment
    device: torch.device
    bfloat16: bool
    micro_batch: int
    world: World
    ahead: int | None = None
    """Batches whose boxes and noise are drawn together and sent to the device before the first of
    them is needed. 0 draws those of each part of a batch when it is shown; the default does so on a
    CPU, which would have nothing of it."""
    graph: bool = False
    """Whether whole steps on full batches are repeated as a CUDA graph (`Repeated`), where one
    player learns in one phase, alone and without micro-batches. A CPU computes the same steps one
    operation at a time."""
    players: dict[str, Player] = field(init=False)
    """By name."""
    _repeated: Repeated | None = field(init=False, default=None)
    _totals: Sums = field(init=False, default_factory=dict)
    """What repeated steps of an epoch add up, in place."""

    def __post_init__(self) -> None:
        players = {player.name: player for player in self.detector.players()}
        object.__setattr__(self, "players", players)
        if self.ahead is None:
            object.__setattr__(self, "ahead", AHEAD if self.device.type == "cuda" else 0)
        if self.graph and self.can_be_graph:
            object.__setattr__(self, "ahead", self.ahead or 1)
            object.__setattr__(self, "_repeated", Repeated(self._whole_step, self.device))

    @property
    def is_graph(self) -> bool:
        """Whether a CUDA graph has been recorded."""
        return self._repeated is not None and self._repeated.is_recorded

    @property
    def can_be_graph(self) -> bool:
        """Whether steps are the same operations each time."""
        (first, *others) = self.players.values()
        return (
            not others
            and first.updates == 1
            and len(self.detector.phases()) == 1
            and self.world.size == 1
            and not self.micro_batch
            and self.module is self.detector
        )

    def epoch(
        self,
        batches: Iterator[Batch],
        sizes: Sequence[int] | None,
        epoch: int,
        names: Sequence[str],
    ) -> Sums:
        """Take the steps of an epoch; returns this worker's sums, on the CPU.

        Args:
            batches: Of this worker.
            sizes: Samples in each step over all workers; None where there is one worker.
            epoch: From 0.
            names: The players that act, in their order.
        """
        sums: Sums = {}
        last: Batch | None = None
        turns = [self.players[name] for name in names for _ in range(self.players[name].updates)]
        drawn = self._drawn(batches, epoch, len(turns))
        for size in sizes if sizes is not None else itertools.repeat(0):
            batch, draws = next(drawn, (None, None))
            if batch is None and sizes is None:
                break
            if batch is not None and self._repeat(batch, draws):
                continue
            if batch is None:
                # Slices with brain differ from part to part: this worker has no more of them, but
                # the others wait for its gradient, which counts nothing.
                assert last is not None
                parts = [self._show(_cut(last, 1, None)[0][0], 0.0, epoch)]
            else:
                last = batch
                parts = [
                    # Workers average their gradients; weights make that the mean over all samples.
                    self._show(
                        p, len(p.ids) / (size or len(batch.ids)) * self.world.size, epoch, of_part
                    )
                    for p, of_part in _cut(batch, self.micro_batch, draws)
                ]
            for turn, player in enumerate(turns):
                turn_sums = self._turn(parts, player, turn, epoch)
                if batch is not None:
                    _add(sums, turn_sums)
            if batch is not None:
                _add(sums, _counts(parts))
            self._share_buffers()
        if len(self.players) > 1:
            self.detector.requires_grad_(True)
        if self._repeated is not None:
            _add(sums, {name: total.clone() for name, total in self._totals.items()})
            for total in self._totals.values():
                total.zero_()
        assert sums
        return _on_cpu(sums)

    def _repeat(self, batch: Batch, draws: "_Draws | None") -> bool:
        """Take a whole step as the ones before; False where it is of another kind."""
        if self._repeated is None or draws is None:
            return False
        if len(batch.ids) != self.experiment.fit.batch_size:
            return False
        inputs = {"images": on_device(batch.images, self.device), "noise": draws.noise[0]}
        if draws.static is not None:
            inputs |= draws.static.tensors()
        if not self._repeated.takes(inputs):
            return False
        self._repeated(inputs)
        return True

    def _whole_step(self, inputs: Tensors) -> None:
        """Erase, learn and count, of tensors alone."""
        x, x_in, erased = inputs["images"].float(), None, None
        names = StaticErasing.names() & set(inputs)
        if names:
            given: dict[str, Any] = {name: inputs.get(name) for name in StaticErasing.names()}
            x_in, erased = StaticErasing(**given).apply(x)
        part = _Part(
            ids=torch.empty(0),
            x_in=(x if x_in is None else x_in)[:, None],
            x=x[:, None],
            weight=1.0,
            erased=erased,
            noise=[inputs["noise"]],
        )
        (player,) = self.players.values()
        sums = self._turn([part], player, 0, 0)
        _add(sums, _counts([part]))
        for name, value in sums.items():
            if name not in self._totals:
                self._totals[name] = torch.zeros_like(value)
            self._totals[name] += value

    def _drawn(
        self, batches: Iterator[Batch], epoch: int, num_turns: int
    ) -> Iterator[tuple[Batch, "_Draws | None"]]:
        """Batches with what chance decides of them; without it where nothing is drawn ahead."""
        if not self.ahead:
            yield from ((batch, None) for batch in batches)
            return
        while group := list(itertools.islice(batches, self.ahead)):
            ids = torch.cat([batch.ids for batch in group])
            draws = self._draw(ids, tuple(group[0].images.shape[1:]), epoch, num_turns)
            start = 0
            for batch in group:
                yield batch, draws.part(slice(start, start + len(batch.ids)))
                start += len(batch.ids)

    def _draw(self, ids: Tensor, spatial: tuple[int, ...], epoch: int, num_turns: int) -> "_Draws":
        noise = [on_device(self._noise(ids, epoch, n), self.device) for n in range(num_turns)]
        where, static = self._erasing(ids, spatial, epoch), None
        if where is not None and self._repeated is not None:
            seed, config = self.experiment.fit.seed, self.experiment.erasing
            static = StaticErasing.of(
                where, config, ids, seed=seed, epoch=epoch, device=self.device
            )
        return _Draws(where=where, noise=noise, static=static)

    def _erasing(self, ids: Tensor, spatial: tuple[int, ...], epoch: int) -> Erasing | None:
        config = self.experiment.erasing
        if config.strategy == NONE:
            return None
        seed = self.experiment.fit.seed
        return sample_erasing(config, ids, seed=seed, epoch=epoch, spatial=spatial)

    def _noise(self, ids: Tensor, epoch: int, turn: int) -> Tensor:
        # The noise follows the sample too, so that no generator's state is to be kept.
        key = random.keys(self.experiment.fit.seed, epoch, ids, random.LATENT + turn)
        return random.normal(key, self.detector.num_noise)

    def _show(
        self, batch: Batch, weight: float, epoch: int, draws: "_Draws | None" = None
    ) -> "_Part":
        """Put samples on the device and erase their input."""
        seed, config, ids = self.experiment.fit.seed, self.experiment.erasing, batch.ids
        x = on_device(batch.images, self.device).float()
        spatial = tuple(x.shape[1:])
        where = draws.where if draws else self._erasing(ids, spatial, epoch)
        x_in, erased = x, None
        if where is not None:
            # On a GPU the sides of the brain have to be waited for: once.
            boxes = erased_boxes(x, where) if x.is_cuda else None
            x_in = erase(x, where, config, ids, seed=seed, epoch=epoch, boxes=boxes)
            erased = erased_counts(x, where, boxes)
        return _Part(
            ids=ids,
            x_in=x_in[:, None],
            x=x[:, None],
            weight=weight,
            erased=erased,
            noise=draws.noise if draws else None,
        )

    def _turn(self, parts: Sequence["_Part"], player: Player, turn: int, epoch: int) -> Sums:
        """One update of one player."""
        optimizer, sums = self.optimizers[player.name], Sums()
        optimizer.zero_grad(set_to_none=True)
        if len(self.players) > 1:
            acting = set(map(id, player.parameters))
            for parameter in self.detector.parameters():
                parameter.requires_grad_(id(parameter) in acting)
        for number, part in enumerate(parts, start=1):
            held = number < len(parts) and hasattr(self.module, "no_sync")
            with self.module.no_sync() if held else nullcontext():  # type: ignore[operator]
                _add(sums, self._backward(part, player, turn, epoch))
        if len(self.players) > 1 and self.world.size > 1:
            _average(player.parameters, self.world)
        nn.utils.clip_grad_norm_(player.parameters, self.experiment.fit.clip_norm)
        optimizer.step()
        return sums

    def _backward(self, part: "_Part", player: Player, turn: int, epoch: int) -> Sums:
        if part.noise is not None:
            noise = part.noise[turn]
        else:
            noise = self._noise(part.ids, epoch, turn).to(self.device)
        who = {"player": player.name} if len(self.players) > 1 else {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            losses = self.module(part.x_in, part.x, noise, **who)
        (losses["loss"] * part.weight).backward()
        return _sums({name: term.detach() for name, term in losses.items()}, part.x, player)

    def _share_buffers(self) -> None:
        """Let players' buffers, such as running means, be those of all workers."""
        if len(self.players) == 1 or self.world.size == 1:
            return
        for buffer in self.detector.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.world.sum(buffer.clone()) / self.world.size)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Samples that go through the network together."""

    ids: Tensor
    x_in: Tensor
    x: Tensor
    weight: float
    erased: Tensor | None
    """`erased_counts`; None for experiments that erase nothing."""
    noise: Sequence[Tensor] | None
    """Of each turn, on the device; None where it is drawn when it is needed."""


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """What chance decides of some samples."""

    where: Erasing | None
    """None for experiments that erase nothing."""
    noise: Sequence[Tensor]
    """Of each turn, on the device."""
    static: StaticErasing | None
    """The same as `where` on the device; None where no step is repeated."""

    def part(self, samples: slice) -> "_Draws":
        """That of some of the samples."""
        return _Draws(
            where=None if self.where is None else self.where.part(samples),
            noise=[one[samples] for one in self.noise],
            static=None if self.static is None else self.static.part(samples),
        )


def _cut(batch: Batch, most: int, draws: _Draws | None) -> list[tuple[Batch, _Draws | None]]:
    if not most or most >= len(batch.ids):
        return [(batch, draws)]
    parts = [slice(start, start + most) for start in range(0, len(batch.ids), most)]
    return [
        (Batch(ids=batch.ids[p], images=batch.images[p]), draws.part(p) if draws else None)
        for p in parts
    ]


def _average(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Make gradients the mean over the workers, in one exchange."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    total = world.sum(torch.cat([g.flatten() for g in gradients])) / world.size
    # Copied in place: an optimiser pairs elements by their place in memory.
    for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def _sums(losses: dict[str, Tensor], x: Tensor, player: Player) -> Sums:
    """Each term times its samples. It stays on the device: asking waits."""
    sums = {}
    for name, term in losses.items():
        # The L1 term is a mean over all voxels; by brain voxels it compares to validation.
        num = x.numel() if name == "reconstruction" else len(x)
        prefix = f"{player.name}/" if player.name and name not in _SHARED else ""
        sums[prefix + name] = term.double() * num / player.updates
    return sums


def _counts(parts: Sequence[_Part]) -> Sums:
    """Samples, brain voxels, and what was erased of them."""
    brain = torch.stack([(part.x > 0).sum() for part in parts]).sum().double()
    samples = sum(len(part.x) for part in parts)
    erased = [part.erased for part in parts if part.erased is not None]
    return {"#samples": torch.full_like(brain, samples), "#brain": brain} | (
        {"#erased": torch.stack(erased).sum(0)} if erased else {}
    )


def _add(sums: Sums, more: Sums) -> None:
    for name, value in more.items():
        sums[name] = sums[name] + value if name in sums else value


def _on_cpu(sums: Sums) -> Sums:
    """Fetched at once."""
    return _split(torch.cat([value.flatten() for value in sums.values()]).cpu(), sums)


def _split(flat: Tensor, like: Sums) -> Sums:
    parts = flat.split([value.numel() for value in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


def over_workers(sums: Sums, world: World) -> Sums:
    """The sums over all workers, which have the same names in the same order."""
    return _split(world.sum(torch.cat([value.flatten() for value in sums.values()])), sums)


def means(sums: Sums) -> Metrics:
    """Of the terms over samples, of the L1 term over brain voxels; units active, shares erased."""
    samples, brain = sums["#samples"], sums["#brain"]
    metrics: Metrics = {}
    for name, value in sums.items():
        if name == "reconstruction":
            metrics["train/reconstruction"] = float(value / brain)
        elif name == "kl_units":
            metrics["train/active_units"] = int((value / samples > ACTIVE_NATS).sum())
        elif name == "#erased":
            if (shares := ErasedShares.of(value.tolist())) is not None:
                metrics |= {f"erasing/{key}": each for key, each in asdict(shares).items()}
        elif not name.startswith("#"):
            metrics[f"train/{name}"] = float(value / samples)
    return metrics
