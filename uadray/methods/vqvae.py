"""A VQ-VAE and transformers over its codes.

Shape suffixes: B batch, C channel, Z axial plane, Y row, X column, T tokens, N features, F numbers
in a code.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from uadray.errors import ConfigError
from uadray.lazy import Module, Tensor, functional, nn, torch
from uadray.methods.base import (
    Detection,
    GradientDetector,
    Masked,
    Phase,
    Player,
    Shape,
    in_pieces,
    slices_as_batch,
    sum_within,
    with_brain,
)
from uadray.methods.blocks import OUTPUT_RANGE, down, norm, pointwise, same, stack, up
from uadray.methods.codes import CausalTransformer, Codebook, ordering
from uadray.methods.registry import method
from uadray.methods.settings import Learned, check, check_limits, check_widths

MAX_NATS = 20.0
"""Upper end of the likelihood scores; a code less likely than e^-20 counts as that."""

LIKELIHOOD_BINS = 4096
"""Bins of the healthy log-likelihoods between -20 and 0 nats, from which the threshold follows."""

MAX_VOXELS = 2**20
"""Voxels that are scored at a time: 32 volumes of 32^3, or 16 slices of 256 x 256."""


class _Residual(Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.layers = stack(
            *norm("group", ndim, width),
            nn.SiLU(),
            same(ndim, width, width),
            *norm("group", ndim, width),
            nn.SiLU(),
            pointwise(ndim, width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        out: Tensor = x + self.layers(x)
        return out


@method(
    "Transformer",
    source="Meissen 2021, table 3 (Pinaya 2021)",
    equation=(
        "min mean abs(x - D(q)) + mean (f - q)^2 / 4, f = E(x), q = its nearest code, a moving "
        "average of such f; then min - sum log p(q_t | q_1 .. q_t-1); s = abs(x - D(healed "
        "q)) where q is unlikely"
    ),
    deviations=(
        "The paper's sizes could not be read: 64 codes, four layers. Codes hardly used "
        "restart at features spread over the batch, without a draw. Healed "
        "by the most likely code, not by a drawn one, so that scores repeat; what is unlikely "
        "is a quantile of healthy validation. The paper's ensemble of eight orderings is an "
        "option."
    ),
)
class Transformer(GradientDetector):
    """A VQ-VAE, and a transformer that knows which codes follow which.

    In the first part of a fit the VQ-VAE learns its codes, in the second the transformers learn
    which follow which; then the threshold of what is unlikely is a quantile over healthy volumes.
    The image is scored by how it differs with its unlikely codes replaced, or by how likely its
    codes are.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(Learned):
        widths: tuple[int, ...] = (32, 64, 128)
        """Feature maps of the convolutions, kernel 5 stride 2; at least two of them are used, and
        as many as it takes to leave at most `max_tokens` codes of an image."""
        max_tokens: int = 1024
        """Maximum number of codes of an image: the transformer's longest sequence. 8^3 of a volume
        of 32^3 or 64^3, 28^2 of the paper's slices of 224^2."""
        num_residual: int = 2
        """Residual blocks on the coarsest grid, in the encoder and in the decoder."""
        num_codes: int = 64
        """Size of the codebook."""
        code_size: int = 32
        """Numbers in a code."""
        commitment: float = 0.25
        """Weight of the encoder's part of the quantisation error (van den Oord 2017)."""
        code_decay: float = 0.99
        """Decay a batch of the moving averages that the codes are (van den Oord 2017, appendix)."""
        dead_share: float = 0.03
        """A code that is used less than this share of the mean starts again at a feature."""
        model_size: int = 128
        """Numbers that the transformer keeps a token."""
        depth: int = 4
        """Layers of the transformer."""
        heads: int = 4
        """Heads of its attention."""
        num_orderings: int = 1
        """Transformers, each of which reads the codes in an order of its own: 8 in the paper."""
        phase_share: float = 0.5
        """Share of the epochs in which the codes are learned; the transformers learn in the
        others."""
        heal_quantile: float = 0.05
        """Share of the healthy brain's codes that count as unlikely, from which the threshold
        follows; unlikely codes are replaced by the most likely ones."""
        score: Literal["residual", "likelihood"] = "residual"
        """`residual`: |x - healed| where codes were replaced; `likelihood`: minus the
        log-likelihood of the codes."""

        def __post_init__(self) -> None:
            check_widths(self.widths, at_least=2)
            sizes = ("max_tokens", "code_size", "model_size", "depth", "heads", "num_orderings")
            check_limits(self, **dict.fromkeys(sizes, ">= 1"))
            check_limits(
                self,
                num_codes=">= 2",
                num_residual=">= 0",
                commitment=">= 0",
                code_decay="in [0, 1)",
                dead_share="in [0, 1)",
                phase_share="in (0, 1)",
                heal_quantile="in (0, 1)",
            )
            check(
                self.model_size % self.heads == 0,
                "method.model_size",
                "a multiple of method.heads",
                (self.model_size, self.heads),
            )
            most = 8 if self.ndim == 2 else 48
            orderings = self.num_orderings
            check(orderings <= most, "method.num_orderings", f"<= {most}", orderings)

    config: Settings
    log_threshold: Tensor
    _orders: Tensor
    _places: Tensor
    calibrates = True

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__(config, shape)
        widths, self.grid = _levels(config, self.grid)
        self.score_range = (0.0, MAX_NATS if config.score == "likelihood" else 1.0)
        n, last = config.ndim, widths[-1]
        encoder: list[nn.Module] = []
        for width_in, width_out in zip((1, *widths), widths, strict=False):
            encoder += [down(n, width_in, width_out), *norm("group", n, width_out), nn.SiLU()]
        encoder += [_Residual(n, last) for _ in range(config.num_residual)]
        self.encoder = stack(*encoder, pointwise(n, last, config.code_size))
        self.codebook = Codebook(
            config.num_codes,
            config.code_size,
            commitment=config.commitment,
            decay=config.code_decay,
            dead_share=config.dead_share,
        )
        decoder: list[nn.Module] = [pointwise(n, config.code_size, last)]
        decoder += [_Residual(n, last) for _ in range(config.num_residual)]
        for width_in, width_out in zip(reversed(widths), (*reversed(widths[:-1]), 1), strict=True):
            decoder += [*norm("group", n, width_in), nn.SiLU(), up(n, width_in, width_out)]
        self.decoder = stack(*decoder)
        self.priors = nn.ModuleList(
            CausalTransformer(
                num_codes=config.num_codes,
                num_tokens=math.prod(self.grid),
                size=config.model_size,
                depth=config.depth,
                heads=config.heads,
            )
            for _ in range(config.num_orderings)
        )
        # Of each transformer, which cells it reads in turn; and where each cell then stands. They
        # go where the detector goes, and stand in no checkpoint: the settings decide them.
        orders = [ordering(self.grid, k) for k in range(config.num_orderings)]
        self.register_buffer("_orders", torch.stack(orders), persistent=False)
        self.register_buffer(
            "_places", torch.stack([order.argsort() for order in orders]), persistent=False
        )
        # Until it is calibrated nothing is unlikely.
        self.register_buffer("log_threshold", torch.full((config.num_orderings,), -math.inf))

    def players(self) -> tuple[Player, ...]:
        """The VQ-VAE; all transformers."""
        vq_vae = (*self.encoder.parameters(), *self.decoder.parameters())
        return (
            Player(name="codes", parameters=vq_vae),
            Player(name="prior", parameters=tuple(self.priors.parameters())),
        )

    def phases(self) -> tuple[Phase, ...]:
        """First the codes, then what follows which."""
        share = self.config.phase_share
        return (
            Phase(name="codes", players=("codes",), share=share),
            Phase(name="prior", players=("prior",), share=1 - share, measure="surprise"),
        )

    def held_out_error(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """Of the decoded codes over the brain's voxels; then the codes' surprise, in nats."""
        total = torch.zeros(2, dtype=torch.float64, device=x_BCZYX.device)
        for x, brain in self._samples(x_BCZYX, brain_BZYX):
            if self.phase == "prior":
                total += sum_within(-self.log_likelihoods(x).mean(1), self._holds_brain(brain))
            else:
                total += sum_within((x - self.plain_reconstruction(x)).abs(), brain)
        return total

    def _samples(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Samples with brain, a few at a time, and where it is, each (N, 1, *spatial)."""
        both = with_brain(x_BCZYX, brain_BZYX)
        samples = slices_as_batch(both) if self.ndim == 2 else both
        samples = samples[samples[:, 1].flatten(1).any(1)]
        pieces = samples.split(max(1, MAX_VOXELS // math.prod(samples.shape[2:])))
        return [(piece[:, :1], piece[:, 1:] > 0) for piece in pieces]

    def features(self, x: Tensor) -> Tensor:
        """(B * T, F) of (B, 1, *spatial)."""
        out: Tensor = self.encoder(x).flatten(2).transpose(1, 2).flatten(0, 1)
        return out

    def decode(self, codes_NF: Tensor) -> Tensor:
        """(B, 1, *spatial) of codes (B * T, F), not clamped."""
        maps = codes_NF.unflatten(0, (-1, math.prod(self.grid))).transpose(1, 2)
        out: Tensor = self.decoder(maps.unflatten(2, self.grid))
        return out

    def tokens(self, x: Tensor) -> Tensor:
        """Number of the nearest code in each cell, (B, T) in raster order."""
        return self.codebook.nearest(self.features(x)).unflatten(0, (len(x), -1))

    def forward(
        self, x_in: Tensor, target: Tensor, noise: Tensor, player: str = "codes"
    ) -> dict[str, Tensor]:
        """The loss of the codes or of the transformers."""
        if player == "prior":
            return {"loss": self._surprise(target)}
        codes, error, _ = self.codebook(self.features(x_in))
        reconstruction = (self.decode(codes).float() - target).abs().mean()
        return {
            "loss": reconstruction + error,
            "reconstruction": reconstruction,
            "quantisation": error.detach(),
        }

    def _surprise(self, x: Tensor) -> Tensor:
        """Minus the mean log-likelihood of a token, summed over the transformers."""
        with torch.no_grad():
            tokens = self.tokens(x)
        losses = [-prior.log_likelihood(ordered).mean() for prior, ordered in self._read(tokens)]
        return torch.stack(losses).sum()

    def _read(self, tokens_BT: Tensor) -> list[tuple[CausalTransformer, Tensor]]:
        """Each transformer, and the tokens in its order."""
        pairs = zip(self.priors, self._orders, strict=True)
        return [(prior, tokens_BT[:, order]) for prior, order in pairs]  # type: ignore[misc]

    def log_likelihoods(self, x: Tensor) -> Tensor:
        """Of each cell by each transformer, (B, orderings, T) in raster order."""
        tokens = self.tokens(x)
        likelihoods = []
        for (prior, ordered), places in zip(self._read(tokens), self._places, strict=True):
            likelihoods.append(prior.log_likelihood(ordered)[:, places])
        return torch.stack(likelihoods, 1)

    def plain_reconstruction(self, x: Tensor) -> Tensor:
        """Decoded codes as they are, (B, 1, *spatial) in [0, 1]."""
        codes = self.codebook.codes[self.tokens(x).flatten()]
        return self.decode(codes).float().clamp(*OUTPUT_RANGE)

    def heal(self, x: Tensor, brain: Tensor) -> Tensor:
        """The image with what its unlikely codes stand for replaced, (B, 1, *spatial) in [0, 1].

        Each transformer heals the codes in its order; the mean of all is taken. Where no code was
        replaced the image stays as it is, and where one was, what it covers fades into that.

        Args:
            x: (B, 1, *spatial).
            brain: The same shape, bool.
        """
        tokens, holds_brain = self.tokens(x), self._holds_brain(brain)
        likelihood = self.log_likelihoods(x)
        healed = torch.zeros_like(x)
        for k, (prior, order) in enumerate(zip(self.priors, self._orders, strict=True)):
            unlikely = (likelihood[:, k] < self.log_threshold[k]) & holds_brain
            changed = prior.heal(tokens[:, order], unlikely[:, order])[:, self._places[k]]  # type: ignore[operator]
            output = (
                self.decode(self.codebook.codes[changed.flatten()]).float().clamp(*OUTPUT_RANGE)
            )
            share = self._upsample(unlikely.float(), x)
            healed = healed + (x + share * (output - x)) / len(self.priors)
        return healed * brain

    def _upsample(self, cells_BT: Tensor, x: Tensor) -> Tensor:
        mode = "bilinear" if self.ndim == 2 else "trilinear"
        maps = cells_BT.unflatten(1, (1, *self.grid))
        return functional.interpolate(maps, size=x.shape[2:], mode=mode)

    def _holds_brain(self, brain: Tensor) -> Tensor:
        """Cells with brain, (B, T), of masks (B, 1, *spatial)."""
        pool = functional.adaptive_max_pool2d if self.ndim == 2 else functional.adaptive_max_pool3d
        return pool(brain.float(), self.grid).flatten(1) > 0

    def reconstruct(self, x_BCZYX: Tensor) -> Tensor:
        """The healed image, its brain being what is above 0; 2D slice by slice."""
        return self.reconstruct_within(x_BCZYX, x_BCZYX[:, 0] > 0)

    def reconstruct_within(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Tensor:
        """The healed image, 2D slice by slice."""

        def run(samples: Tensor) -> Tensor:
            return self.heal(samples[:, :1], samples[:, 1:] > 0)

        return in_pieces(run, with_brain(x_BCZYX, brain_BZYX), self.ndim, MAX_VOXELS)

    def detect(self, x_BCZYX: Tensor, brain_BZYX: Tensor) -> Detection:
        """|x - healed|, or minus the log-likelihood of the codes, in nats."""
        if self.config.score == "residual":
            return super().detect(x_BCZYX, brain_BZYX)

        def run(samples: Tensor) -> Tensor:
            x = samples[:, :1]
            return self._upsample(-self.log_likelihoods(x).mean(1), x).clamp(0, MAX_NATS)

        both = with_brain(x_BCZYX, brain_BZYX)
        return Detection(in_pieces(run, both, self.ndim, MAX_VOXELS)[:, 0])

    def calibrate(self, volumes: Iterable[Masked], total: Callable[[Tensor], Tensor]) -> None:
        """Set the thresholds: quantiles of the log-likelihood of healthy codes that hold brain.

        Args:
            volumes: Healthy ones of this worker.
            total: Sum over the workers.
        """
        counts = torch.zeros(len(self.priors), LIKELIHOOD_BINS, dtype=torch.float64)
        for x, brain in volumes:
            for part, within in self._samples(x, brain):
                likelihood, inside = self.log_likelihoods(part), self._holds_brain(within)
                for k in range(len(self.priors)):
                    values = likelihood[:, k][inside].cpu().clamp(-MAX_NATS, 0)
                    counts[k] += values.histc(LIKELIHOOD_BINS, -MAX_NATS, 0)
        below = total(counts).cumsum(1)
        edges = torch.linspace(-MAX_NATS, 0, LIKELIHOOD_BINS + 1)[1:]
        for k, counted in enumerate(below):
            first = int((counted >= self.config.heal_quantile * counted[-1]).nonzero()[0, 0])
            self.log_threshold[k] = edges[first]


def _levels(config: Any, spatial: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Widths of the convolutions that are used, and the grid that is left after them."""
    for used in range(2, len(config.widths) + 1):
        if any(n % 2**used for n in spatial):
            raise ConfigError(
                f"images of {spatial} do not fit the VQ-VAE: sides must be divisible by "
                f"{2**used}; prepare the cohort with another --size"
            )
        grid = tuple(n // 2**used for n in spatial)
        if math.prod(grid) <= config.max_tokens:
            return config.widths[:used], grid
    raise ConfigError(
        f"images of {spatial} leave {math.prod(grid)} codes after {len(config.widths)} "
        f"convolutions, more than method.max_tokens, which is {config.max_tokens}: give more "
        "--method.widths"
    )
