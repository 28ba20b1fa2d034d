"""What a forward pass depends on besides the settings of its method, and what runs record of it."""

from typing import Any

KERNEL = 5
"""Kernel of all strided convolutions (Bengs 2021, figure 2)."""

GROUPS = 8
"""Groups of channels that group normalisation normalises together."""

OUTPUT_RANGE = (0.0, 1.0)
"""Reconstructions are clamped to the range of the intensities before they are compared."""


def constants() -> dict[str, Any]:
    """As JSON values, for `config.json`."""
    return {
        "kernel_size": KERNEL,
        "group_norm_groups": GROUPS,
        "output_range": list(OUTPUT_RANGE),
    }
