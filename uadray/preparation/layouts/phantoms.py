"""Invented subjects as scans."""

from uadray.errors import ConfigError, StoreError
from uadray.preparation.layouts.scans import (
    PHANTOM_SCHEME,
    Scan,
    Scans,
    phantom_url,
    read_phantom_url,
)


def phantom(kind: str, count: int, first_seed: int = 0, *, version: int | None = None) -> Scans:
    """Invented subjects, `count` of them; the same kind and seed is always the same subject.

    Args:
        kind: healthy, tumour or stroke.
        count: How many.
        first_seed: Seed of the first; the others follow it.
        version: How they are made, see `uadray.phantom`; the newest by default. Their ages and
            sexes are covariates from version 2 on.

    Raises:
        ConfigError: there is to be none, a seed is below 0, or there is no such version.
    """
    if count < 1 or first_seed < 0:
        raise ConfigError(f"count must be >= 1 and first_seed >= 0, were {count} and {first_seed}")
    # Here, not above: jobs import layouts before they read their arguments.
    from uadray.phantom import VERSION, age_and_sex

    version = VERSION if version is None else version

    def one(seed: int) -> Scan:
        known = age_and_sex(kind, seed, version=version)  # type: ignore[arg-type]
        return Scan(
            id=f"{kind}-{seed:05d}",
            subject=f"{kind}-{seed:05d}",
            modality="T1w",
            image=phantom_url(kind, seed, version),
            covariates=(("age", str(known[0])), ("sex", known[1])) if known else (),
        )

    return Scans(one(seed) for seed in range(first_seed, first_seed + count))


def version_at(url: str) -> int | None:
    """How the phantoms of the cohort at a URL are made; None where no sealed cohort of them is."""
    from uadray.store import open_cohort

    try:
        source = str(open_cohort(url).columns("source")["source"].iloc[0])
    except (StoreError, FileNotFoundError):
        return None
    return read_phantom_url(source)[2] if source.startswith(PHANTOM_SCHEME) else None
