"""The detector of a run: as it begins, and as its best epoch left it."""

import torch

from uadray.config import Experiment
from uadray.errors import ConfigError
from uadray.methods import Detector, GradientDetector, OutsideMaps, StreamDetector, build
from uadray.runs.checkpoint import CheckpointStore
from uadray.runs.folder import Run
from uadray.runs.maps import KeptMaps


def build_detector(experiment: Experiment, shape: tuple[int, int, int]) -> Detector:
    """An unfitted detector; its weights follow the seed, and nothing else's random state moves.

    Raises:
        ConfigError: volumes of that shape do not suit the method.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.fit.seed)
        return build(experiment.method, shape)


def load_detector(run: Run) -> Detector:
    """The fitted detector of a run, at its best epoch, in evaluation mode.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged or of another run.
        RunError: the list of its maps from outside is absent or damaged.
    """
    detector = build_detector(run.experiment, run.shape)
    checkpoints = CheckpointStore.of(run)
    state = checkpoints.state()
    if state is not None:
        checkpoints.load_model(detector, state.best)
    elif isinstance(detector, (GradientDetector, StreamDetector)):
        raise ConfigError(f"{run.url} has no checkpoint yet: run the same jobs/train.py again")
    if isinstance(detector, OutsideMaps):
        maps = KeptMaps(run.url)
        maps.check(bytes(detector.digest.tolist()))
        detector.look_up(maps)
    return detector.eval()
