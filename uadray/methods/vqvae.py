"""Settings of the transformer over vector-quantised features (Pinaya 2021; Meissen 2021)."""

from dataclasses import dataclass
from typing import Literal

from uadray.methods.base import Learned, Named, check


@dataclass(frozen=True, kw_only=True)
class Transformer(Learned):
    """A VQ-VAE, and a transformer that knows which codes follow which."""

    widths: tuple[int, ...] = (32, 64, 128)
    """Feature maps of the convolutions, kernel 5 stride 2; two of them at least are used, and so
    many of them that at most `max_tokens` codes are left of an image."""
    max_tokens: int = 1024
    """Most codes of an image: the transformer's longest sequence. 8^3 of a volume of 32^3 or 64^3,
    28^2 of the paper's slices of 224^2."""
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
    """A code that is used less than this share of the mean begins anew at a feature."""
    model_size: int = 128
    """Numbers that the transformer keeps a token."""
    depth: int = 4
    """Layers of the transformer."""
    heads: int = 4
    """Heads of its attention."""
    num_orderings: int = 1
    """Transformers, each of which reads the codes in an order of its own: 8 in the paper."""
    phase_share: float = 0.5
    """Share of the epochs in which the codes are learned; the transformers learn in the others."""
    heal_quantile: float = 0.05
    """Share of the healthy brain's codes that count as unlikely, from which the threshold follows;
    unlikely codes are replaced by the most likely ones."""
    score: Literal["residual", "likelihood"] = "residual"
    """`residual`: |x - healed| where codes were replaced; `likelihood`: minus the log-likelihood of
    the codes."""

    def __post_init__(self) -> None:
        check(
            len(self.widths) >= 2 and all(w % 8 == 0 and w > 0 for w in self.widths),
            "method.widths",
            "two or more multiples of 8",
            self.widths,
        )
        for name in ("max_tokens", "code_size", "model_size", "depth", "heads", "num_orderings"):
            check(getattr(self, name) >= 1, f"method.{name}", ">= 1", getattr(self, name))
        check(self.num_codes >= 2, "method.num_codes", ">= 2", self.num_codes)
        check(self.num_residual >= 0, "method.num_residual", ">= 0", self.num_residual)
        check(
            self.model_size % self.heads == 0,
            "method.model_size",
            "a multiple of method.heads",
            (self.model_size, self.heads),
        )
        most = 8 if self.ndim == 2 else 48
        orderings = self.num_orderings
        check(orderings <= most, "method.num_orderings", f"<= {most}", orderings)
        check(self.commitment >= 0, "method.commitment", ">= 0", self.commitment)
        check(0 <= self.code_decay < 1, "method.code_decay", "in [0, 1)", self.code_decay)
        check(0 <= self.dead_share < 1, "method.dead_share", "in [0, 1)", self.dead_share)
        check(0 < self.phase_share < 1, "method.phase_share", "in (0, 1)", self.phase_share)
        check(0 < self.heal_quantile < 1, "method.heal_quantile", "in (0, 1)", self.heal_quantile)


NAMED: dict[str, Named] = {
    "Transformer": Named(
        method=Transformer(),
        source="Meissen 2021, table 3 (Pinaya 2021)",
        equation=(
            "min mean abs(x - D(q)) + mean (f - q)^2 / 4, f = E(x), q = its nearest code, a moving "
            "average of such f; then min - sum log p(q_t | q_1 .. q_t-1); s = abs(x - D(healed "
            "q)) where q is unlikely"
        ),
        deviations=(
            "The paper's sizes could not be read: 64 codes, four layers. Codes hardly used "
            "begin anew at features spread over the batch, without a draw. Healed "
            "by the most likely code, not by a drawn one, so that scores repeat; what is unlikely "
            "is a quantile of healthy validation. The paper's ensemble of eight orderings is an "
            "option."
        ),
    ),
}
"""On slices."""
