"""Thousands of scans on Ray Data: a pool of actors, each with the model, one scan at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import SimpleITK as sitk
import torch
from ray import cloudpickle

from uadray import cluster, errors
from uadray.errors import UadrayError
from uadray.prediction import outputs
from uadray.prediction.folder import Outcome, predict_item
from uadray.prediction.inputs import Item
from uadray.prediction.model_folder import open_model
from uadray.prediction.scan import PredictConfig
from uadray.prepare.layouts.listing import printable

MAX_TASKS = 10_000
"""More scans than that share tasks."""


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """Predicts scans on the cluster."""

    model: str
    """Run or model folder, on storage that all nodes reach."""
    cohort: str
    """Where the run's cohort lies, if it has moved."""
    out: str
    """The output folder, likewise."""
    config: PredictConfig
    """How they are predicted."""
    workers: int | None = None
    """Scans at a time; as many as there are CPUs by default."""
    viewer: bool = False
    """Whether to make a page for each scan."""
    gpus: float = 0.0
    """GPUs of each worker; 0 computes on CPUs."""

    def __call__(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """See `folder.Engine`."""
        cluster.connect()
        cpus = int(ray.cluster_resources().get("CPU", 1))
        actors = max(1, min(len(items), self.workers or cpus))
        packed = [{"item": cloudpickle.dumps(item)} for item in items]
        dataset = ray.data.from_items(packed, override_num_blocks=min(len(items), MAX_TASKS))
        predicted = dataset.map(
            _Predictor,  # type: ignore[arg-type]  # an actor's class
            fn_constructor_args=(self,),
            num_cpus=min(1, cpus),
            num_gpus=self.gpus or None,
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
        with cluster.plain_errors():
            for row in predicted.iter_rows():
                if row["error"]:
                    raise getattr(errors, row["error"])(row["message"])
                yield Outcome(name=row["name"], reason=row["reason"])


class _Predictor:
    """An actor that holds the model."""

    def __init__(self, job: OnRay) -> None:
        self._job = job
        self._device = torch.device("cuda" if job.gpus and torch.cuda.is_available() else "cpu")
        # Ray grants one CPU; a library that takes all of them only makes the others wait.
        torch.set_num_threads(1)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        self._model = open_model(job.model, cohort=job.cohort)
        self._model.detector.to(self._device)

    def __call__(self, packed: dict[str, Any]) -> dict[str, Any]:
        item: Item = cloudpickle.loads(packed["item"])
        result = {"name": item.name, "reason": "", "error": "", "message": ""}
        # Arrow takes no bytes of names that are no UTF-8.
        job = self._job
        try:
            outcome = predict_item(
                self._model, item, job.out, job.config, viewer=job.viewer, device=self._device
            )
        except OSError as error:
            told = outputs.unwritable(job.out, error)
            return result | {"error": type(told).__name__, "message": printable(str(told))}
        except UadrayError as error:
            # Ray Data drops the cause of a failed task, so that a named error travels as a value.
            return result | {"error": type(error).__name__, "message": printable(str(error))}
        return result | {"reason": printable(outcome.reason)}
