"""Codes of an image, and a transformer over them, one after the other.

Shape suffixes: B batch, T tokens, E numbers a token, H heads, N features, F numbers in a code, K
codes.
"""

import itertools
import math

from uadray.device import full_float32
from uadray.lazy import Module, Tensor, functional, nn, torch


class Codebook(Module):
    """Replaces each feature by the nearest of a few codes (van den Oord 2017).

    Codes are moving averages of the features that chose them, in buffers; so they follow the
    encoder at once, and workers average them as they do all buffers. What hardly any feature
    chooses starts again at a feature of the batch, at first all codes: evenly spread over the
    features, from the worst represented to the best, so that nothing is drawn.

    Args:
        num_codes: Codes.
        size: Numbers in a code.
        commitment: Weight of the distance of a feature to its code.
        decay: Of the moving averages, a batch.
        dead_share: A code starts again whose usage is below this share of the mean usage.
    """

    usage: Tensor
    sums: Tensor

    def __init__(
        self, num_codes: int, size: int, *, commitment: float, decay: float, dead_share: float
    ) -> None:
        super().__init__()
        self.commitment, self.decay, self.dead_share = commitment, decay, dead_share
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("sums", torch.randn(num_codes, size))

    @property
    def codes(self) -> Tensor:
        """(K, F)."""
        return self.sums / torch.where(self.usage > 0, self.usage, 1.0)[:, None]

    def squared_distances(self, features_NF: Tensor) -> Tensor:
        """To each code, (N, K), float32."""
        # In bfloat16 other codes than those of scoring would be the nearest.
        with torch.autocast(features_NF.device.type, enabled=False), full_float32():
            features_NF, codes = features_NF.float(), self.codes
            cross = features_NF @ codes.T
            return features_NF.square().sum(1, keepdim=True) - 2 * cross + codes.square().sum(1)

    def nearest(self, features_NF: Tensor) -> Tensor:
        """Number of the nearest code, (N,)."""
        return self.squared_distances(features_NF).argmin(1)

    def forward(self, features_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise; while training, the codes move first.

        Returns:
            Codes in place of the features, through which gradients pass unchanged, (N, F); the
            features' part of the quantisation error, a scalar; the chosen numbers, (N,).
        """
        features_NF = features_NF.float()
        if self.training:
            with torch.no_grad():
                self._follow(features_NF.detach())
        chosen = self.nearest(features_NF.detach())
        codes = self.codes[chosen]
        error = self.commitment * (features_NF - codes).square().mean()
        return features_NF + (codes - features_NF).detach(), error, chosen

    def _follow(self, features_NF: Tensor) -> None:
        num, num_codes = len(features_NF), len(self.usage)
        distance, chosen = self.squared_distances(features_NF).min(1)
        with torch.autocast(features_NF.device.type, enabled=False), full_float32():
            # A product, not a scattered sum, so that a GPU adds in the same order every time.
            whose = functional.one_hot(chosen, num_codes).float()
            self.usage.lerp_(whose.sum(0) * (self.usage.sum() > 0), 1 - self.decay)
            self.sums.lerp_(whose.T @ features_NF, 1 - self.decay)
        mean = self.usage.mean()
        dead = (self.usage <= self.dead_share * mean).nonzero()[:, 0]
        if len(dead) == 0:
            return
        worst_first = distance.argsort(descending=True, stable=True)
        places = torch.arange(len(dead), device=dead.device) * num // len(dead)
        count = torch.where(mean > 0, mean, num * (1 - self.decay) / num_codes)
        self.usage[dead] = count
        self.sums[dead] = count * features_NF[worst_first[places]]


def ordering(grid: tuple[int, ...], number: int) -> Tensor:
    """In which order the cells of a grid are read, (T,) int64: their places in raster order.

    The first is the raster order; the others are rasters of the grid with its axes permuted and
    turned round: 8 orders in 2D, 48 in 3D.

    Args:
        grid: Cells along each axis.
        number: Which order, from 0.
    """
    turns = list(itertools.product((False, True), repeat=len(grid)))
    axes = list(itertools.permutations(range(len(grid))))
    # Axes first, so that a small ensemble reads along different ones.
    turned, permuted = turns[number // len(axes)], axes[number % len(axes)]
    places = torch.arange(math.prod(grid)).reshape(grid)
    places = places.flip([axis for axis, turn in enumerate(turned) if turn])
    return places.permute(permuted).flatten().clone()


class _Layer(Module):
    """Attention to what came before, and two dense layers; each normalises its input."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.to_qkv, self.leave = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.dense = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, x_BTE: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """All tokens at once, or the next token beside the keys and values `kept` of the others."""
        split = self.to_qkv(self.norm_1(x_BTE)).unflatten(2, (3, self.heads, -1))
        query, key, value = (t.transpose(1, 2) for t in split.unbind(2))
        if kept is not None:
            if kept:
                key, value = torch.cat([kept[0], key], 2), torch.cat([kept[1], value], 2)
            kept[:] = [key, value]
        attended = functional.scaled_dot_product_attention(
            query, key, value, is_causal=kept is None
        )
        x_BTE = x_BTE + self.leave(attended.transpose(1, 2).flatten(2))
        out: Tensor = x_BTE + self.dense(self.norm_2(x_BTE))
        return out


class CausalTransformer(Module):
    """Which code comes next, given those before it.

    Args:
        num_codes: Codes of the codebook.
        num_tokens: Codes of an image.
        size: Numbers that it keeps a token.
        depth: Layers.
        heads: Heads of the attention.
    """

    def __init__(
        self, *, num_codes: int, num_tokens: int, size: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.num_codes, self.num_tokens = num_codes, num_tokens
        # The last code stands for the beginning.
        self.codes = nn.Embedding(num_codes + 1, size)
        self.places = nn.Embedding(num_tokens, size)
        for table in (self.codes, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.layers = nn.ModuleList(_Layer(size, heads) for _ in range(depth))
        self.norm, self.to_code = nn.LayerNorm(size), nn.Linear(size, num_codes)

    def forward(self, codes_BT: Tensor) -> Tensor:
        """Logits of each token given those before it, (B, T, K)."""
        begin = torch.full_like(codes_BT[:, :1], self.num_codes)
        before = torch.cat([begin, codes_BT[:, :-1]], 1)
        x_BTE = self.codes(before) + self.places.weight
        for layer in self.layers:
            x_BTE = layer(x_BTE)
        out: Tensor = self.to_code(self.norm(x_BTE))
        return out

    def log_likelihood(self, codes_BT: Tensor) -> Tensor:
        """Log-probability of each token given those before it, (B, T), in nats, float32."""
        log_p = self(codes_BT).float().log_softmax(2)
        return log_p.gather(2, codes_BT[..., None])[..., 0]

    def heal(self, codes_BT: Tensor, unlikely_BT: Tensor) -> Tensor:
        """Replace unlikely tokens by the most likely ones, one after the other.

        Each is chosen given what stands before it, healed tokens included.

        Args:
            codes_BT: Codes.
            unlikely_BT: Which to replace, bool.
        """
        healed = codes_BT.clone()
        if not unlikely_BT.any():
            return healed
        kept: list[list[Tensor]] = [[] for _ in self.layers]
        before = torch.full_like(healed[:, 0], self.num_codes)
        for place in range(int(unlikely_BT.any(0).nonzero().max()) + 1):
            x_BTE = (self.codes(before) + self.places.weight[place])[:, None]
            for layer, keys_and_values in zip(self.layers, kept, strict=True):
                x_BTE = layer(x_BTE, keys_and_values)
            best = self.to_code(self.norm(x_BTE[:, 0])).argmax(1)
            healed[:, place] = torch.where(unlikely_BT[:, place], best, healed[:, place])
            before = healed[:, place]
        return healed
