"""Invented subjects as scans."""

from uadray.errors import ConfigError
from uadray.preparation.layouts.scans import PHANTOM_SCHEME, Scan, Scans


def phantom(kind: str, count: int, first_seed: int = 0) -> Scans:
    """Invented subjects, `count` of them; the same kind and seed is always the same subject.

    Args:
        kind: healthy, tumour or stroke.
        count: How many.
        first_seed: Seed of the first; the others follow it.

    Raises:
        ConfigError: there is to be none, or a seed is below 0.
    """
    if count < 1 or first_seed < 0:
        raise ConfigError(f"count must be >= 1 and first_seed >= 0, were {count} and {first_seed}")
    return Scans(
        Scan(
            id=f"{kind}-{seed:05d}",
            subject=f"{kind}-{seed:05d}",
            modality="T1w",
            image=f"{PHANTOM_SCHEME}{kind}/{seed}",
        )
        for seed in range(first_seed, first_seed + count)
    )
