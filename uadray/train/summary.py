"""What is said of a fit: the line of an epoch, and the facts of its summary."""

from typing import Any

from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.strategies import strategy
from uadray.train.steps import Metrics


def summarise(run: Run) -> dict[str, Any]:
    """What the records and checkpoints of a run tell its summary, ended well or not."""
    state = CheckpointStore.of(run).state()
    records = run.metrics()
    kept = next((r for r in records if state and r["epoch"] == state.best), None)
    measure = next((k for k in kept or {} if k.startswith("validation/")), _RECONSTRUCTION)
    # The epoch's own figure, not what it was chosen by: one saved only to resume from has none.
    value = kept.get(measure) if kept else state.best_value if state else None
    return {
        "epochs": len(records),
        "best_epoch": state.best if state and records else None,
        _RECONSTRUCTION: None,
        measure: value,
        "fit_seconds": sum(r["seconds"] for r in records) or None,
        "erasing": _erasing(run, records),
        "warnings": _warnings(run, records, state.best) if state and records else [],
    }


def _erasing(run: Run, records: list[Metrics]) -> dict[str, float] | None:
    """What the fit's epochs erased beside what was to be; None where nothing is erased."""
    one = strategy(run.experiment.erasing)
    counted = [record for record in records if record.get("erasing/samples")]
    if one is None or not counted:
        return None
    weights = [record["erasing/samples"] for record in counted]
    ndim = getattr(run.experiment.method, "ndim", 3)
    means = {
        key: sum(w * r[f"erasing/{key}"] for w, r in zip(weights, counted, strict=True))
        / sum(weights)
        for key in ("share", "brain_share", "no_brain")
    }
    nominal = one.nominal(run.experiment.erasing, run.shape[-ndim:])
    return {"samples": sum(weights), "nominal_share": nominal} | means


def _warnings(run: Run, records: list[Metrics], best: int) -> list[str]:
    """What a reader of the figures must know about the fit."""
    kept = next((record for record in records if record["epoch"] == best), {})
    active, method = kept.get("train/active_units"), run.experiment.method
    # How many units a spatial latent has follows from the volumes' shape.
    spatial = getattr(method, "latent", "dense") == "spatial"
    size = 0 if spatial else getattr(method, "latent_size", 0)
    if active is None or active > size * COLLAPSED_SHARE:
        return []
    of_all = f"{active} latent units carry" if spatial else f"{active} of {size} latent units carry"
    return [
        f"posterior collapse: {of_all} information in epoch {best}, which is kept, so that all "
        "reconstructions are nearly the same: lower --method.kl-weight or fit longer"
    ]


_RECONSTRUCTION = "validation/reconstruction"

COLLAPSED_SHARE = 0.01
"""A latent is called collapsed where at most this share of its units is active."""


def format_metrics(metrics: Metrics) -> str:
    """What an epoch reached; the line of progress before it says which one it is."""
    parts = []
    if "phase" in metrics:
        parts.append(f"phase {metrics['phase']}")
    for key, name in _SHOWN.items():
        if key in metrics:
            parts.append(f"{name} {metrics[key]:.4f}")
    if not any(key in metrics for key in _SHOWN):
        losses = (key for key in metrics if key.startswith("train/") and key.endswith("/loss"))
        parts += [f"{key.split('/')[1]} {metrics[key]:.4f}" for key in losses]
    if "train/active_units" in metrics:
        parts.append(f"{metrics['train/active_units']} latent units active")
    return ", ".join([*parts, f"{metrics['samples_per_second']:.0f} samples/s"])


_SHOWN = {"train/reconstruction": "train L1", "validation/reconstruction": "validation L1"}
