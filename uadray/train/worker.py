"""What one worker of a fit does, alone in its process or in a group: `Fit` on a run's cohort."""

import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uadray.data.sampling import fit_rows, step_sizes
from uadray.data.stream import TrainingStream, ValidationStream, fits_in_memory
from uadray.device import full_float32, gpu_facts
from uadray.errors import ConfigError, RunError
from uadray.gauges import fit_gauges
from uadray.methods.base import GradientDetector, Masked
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.detector import build_detector
from uadray.runs.folder import Run
from uadray.runs.reading import EPOCHS
from uadray.store import Cohort
from uadray.train.fit import Fit
from uadray.train.precision import check_cudnn, reduced_precision
from uadray.train.settings import TrackConfig
from uadray.train.steps import Metrics, World
from uadray.train.track import tracked


def fit_worker(
    run: Run,
    cohort: Cohort,
    *,
    world: World,
    device: torch.device,
    micro_batch: int,
    cuda_graph: bool = False,
    track: TrackConfig,
    report: Callable[[Metrics], None],
    is_leaving: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fit a method that learns by gradient, from the newest checkpoint to the end.

    `report` and `is_leaving` are those of `Fit`.

    Returns:
        How it was done, for the summary: volumes, residency, precision, device, threads and the
        peak memory of the worker with the highest.

    Raises:
        ConfigError: the workers or micro-batches do not suit the batch or the method.
        NotFiniteError: the loss is not finite.
    """
    experiment, config = run.experiment, run.experiment.fit
    detector = build_detector(experiment, run.shape)
    assert isinstance(detector, GradientDetector)
    if micro_batch and any(isinstance(m, _BATCH_NORM) for m in detector.modules()):
        raise ConfigError(
            "scale.micro_batch changes what batch normalisation learns: choose another "
            "--method.norm, or 0 micro-batches"
        )
    check_cudnn(config, detector.ndim, device)
    _reset_peak(device)
    rows, held_back = fit_rows(cohort, config)
    num_volumes = len(rows) + len(held_back)
    resident = config.residency == "device" or (
        config.residency == "auto" and fits_in_memory(cohort, num_volumes, world.size, str(device))
    )
    train = TrainingStream(
        cohort,
        rows,
        ndim=detector.ndim,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
        resident=resident,
        device=str(device),
    )
    sizes = None
    if world.size > 1:
        sizes = step_sizes([int(n) for n in of_each(world, train.num_samples())], config.batch_size)
    past, state = run.metrics(), CheckpointStore.of(run).state()
    done = 0 if state is None else state.last
    if [r["epoch"] for r in past if r["epoch"] <= done] != list(range(1, done + 1)):
        raise RunError(
            f"{run.url}/{EPOCHS} does not hold each of the {done} epochs that the checkpoint has: "
            "restore it from a copy, or fit again into another folder (--out)"
        )
    with (
        tracked(run, track if world.rank == 0 else TrackConfig()) as follow,
        fit_gauges(
            run.url, experiment=experiment.name, cohort=cohort.name, rank=world.rank
        ) as gauges,
    ):
        gauges.start(config.epochs)

        def log(records: list[Metrics]) -> None:
            run.write_metrics(records)
            follow(records[-1])
            gauges.record(records[-1])

        Fit(
            detector=detector,
            experiment=experiment,
            train=gauges.counted(train.epoch, lambda batch: len(batch.ids)),
            validation=ValidationStream(
                cohort,
                held_back,
                batch_size=8 if device.type == "cpu" else 32,
                rank=world.rank,
                world=world.size,
                resident=resident,
                device=str(device),
            ),
            checkpoints=CheckpointStore.of(run),
            report=report,
            is_leaving=is_leaving,
            records=past,
            device=device,
            world=world,
            sizes=sizes,
            micro_batch=micro_batch,
            graph=cuda_graph,
            log=log,
        ).run()
    if detector.calibrates:
        _calibrate(detector, CheckpointStore.of(run), cohort, held_back, world, device)
    return {
        "num_train_volumes": len(rows),
        "num_validation_volumes": len(held_back),
        "residency": "device" if resident else "stream",
        "precision": (
            "bfloat16" if reduced_precision(config.precision, detector, device) else "float32"
        ),
        "device": device.type,
        **({"gpu": gpu_facts()} if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "peak_memory_gib": max(of_each(world, _peak_memory(device))),
    }


def _calibrate(
    detector: GradientDetector,
    checkpoints: CheckpointStore,
    cohort: Cohort,
    rows: NDArray[np.int64],
    world: World,
    device: torch.device,
) -> None:
    """Let the best epoch's detector set its buffers by healthy volumes, once."""
    state = checkpoints.state()
    assert state is not None
    if state.calibrated:
        return
    rows = rows[: detector.calibration_volumes or len(rows)]
    stream = ValidationStream(cohort, rows, rank=world.rank, world=world.size, resident=False)
    checkpoints.load_model(detector.to(device).eval(), state.best)
    with torch.no_grad(), full_float32():
        volumes = (
            Masked(b.images.to(device).float()[:, None], b.inside.to(device)) for b in stream
        )
        detector.calibrate(volumes, world.sum)
    if world.rank == 0:
        checkpoints.save_calibrated(detector)


_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


def of_each(world: World, value: float) -> list[float]:
    """A number of each worker, by rank, on all of them."""
    mine = torch.zeros(world.size, dtype=torch.float64)
    mine[world.rank] = value
    return world.sum(mine).tolist()


def _peak_memory(device: torch.device) -> float:
    """GiB: what the fit took of its GPU, or else the highest resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _reset_peak(device: torch.device) -> None:
    """Forget the peak of fits that this process did before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
