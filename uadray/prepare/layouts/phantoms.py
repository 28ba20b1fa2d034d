"""Invented subjects as scans."""

from uadray.prepare.layouts.scans import PHANTOM_SCHEME, Scan


def phantom(kind: str, count: int, first_seed: int = 0) -> list[Scan]:
    """Invented subjects, `count` of them; the same kind and seed is always the same subject.

    Args:
        kind: healthy, tumour or stroke.
        count: How many.
        first_seed: Seed of the first; the others follow it.
    """
    return [
        Scan(
            id=f"{kind}-{seed:05d}",
            subject=f"{kind}-{seed:05d}",
            modality="T1w",
            image=f"{PHANTOM_SCHEME}{kind}/{seed}",
        )
        for seed in range(first_seed, first_seed + count)
    ]
