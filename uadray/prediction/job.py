"""What `jobs/predict.py` does: find the scans, choose who predicts them, report progress."""

import math
from dataclasses import dataclass, field

from uadray import files
from uadray.device import Device, compute_device, gpus_each
from uadray.errors import ConfigError
from uadray.prediction.folder import (
    FEW,
    Engine,
    InProcess,
    OnRay,
    Outcome,
    Predicted,
    predict_items,
)
from uadray.prediction.inputs import Item, find_items
from uadray.prediction.model import Model
from uadray.prediction.model_folder import open_model
from uadray.prediction.scan import choose_threshold
from uadray.prediction.settings import PredictConfig, check_age
from uadray.progress import Progress


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Scans to predict, and how."""

    model: str
    """Run or model folder; a local path or an fsspec URL."""
    scans: tuple[str, ...]
    """NIfTI files, tables or folders."""
    out: str
    """Where the results go."""
    workers: int | None = None
    """Scans at a time; 1 stays in this process, more use Ray; by default more than eight scans
    do, on all CPUs."""
    cohort: str = ""
    """Where the run's cohort lies, if it has moved."""
    brain: str = ""
    """Brain mask of the one scan."""
    age: float | None = None
    """In years, of the one scan's person."""
    covariates: str = ""
    """Table of what is known of people besides, such as their ages."""
    viewer: bool = True
    """Whether to make a page for each scan, and one for all."""
    device: Device = "auto"
    """`cuda` computes on a GPU in each worker, `cpu` on none; `auto` as `gpus` says."""
    gpus: float = 0.0
    """GPUs of each worker, at most 1; 0 computes on CPUs."""
    config: PredictConfig = field(default_factory=PredictConfig)
    """Threshold, and where the preparation differs from the cohort's."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be >= 1, was {self.workers}")
        check_age(self.age)
        if not 0 <= self.gpus < math.inf:
            raise ConfigError(f"gpus must be >= 0 and finite, was {self.gpus}")
        gpus_each(self.device, self.gpus, "gpus")

    def run(self) -> Predicted:
        """Predict.

        Raises:
            UadrayError: the model, the inputs or the output folder cannot be used.
        """
        model = open_model(self.model, cohort=self.cohort)
        # A threshold that is missing is said before any scan is looked for.
        choose_threshold(model, self.config)
        listing = find_items(
            self.scans,
            model.origin.modality,
            brain=self.brain,
            ignore_names=self.config.ignore_names,
            age=self.age,
            covariates=self.covariates,
        )
        failed = 0
        with Progress(total=len(listing.items), what="scans") as progress:

            def report(outcome: Outcome) -> None:
                nonlocal failed
                failed += bool(outcome.reason)
                progress.advance(1, note=f"{failed} quarantined" if failed else "")

            return predict_items(
                model,
                listing.items,
                self.out,
                self.config,
                engine=self._engine(model, listing.items),
                viewer=self.viewer,
                left_out=listing.left_out,
                begin=lambda kept: progress.set_done(kept) if kept < len(listing.items) else None,
                report=report,
            )

    def _engine(self, model: Model, items: tuple[Item, ...]) -> Engine:
        out = files.normalise(self.out)
        workers = self.workers or (None if len(items) > FEW else 1)
        gpus = gpus_each(self.device, self.gpus, "gpus")
        if workers == 1:
            device = compute_device("cuda" if gpus else "cpu")
            model.detector.to(device)
            return InProcess(
                model=model, out=out, config=self.config, viewer=self.viewer, device=device
            )
        return OnRay(
            model=files.normalise(self.model),
            cohort=self.cohort,
            out=out,
            config=self.config,
            workers=workers,
            viewer=self.viewer,
            gpus=gpus,
        )
