"""The detector of a run: as it begins, and as its best epoch left it."""

import copy

import torch

from uadray.config import Experiment
from uadray.errors import ConfigError, PluginError, UadrayError
from uadray.methods import Detector, GradientDetector, StreamDetector, build, is_fitted
from uadray.methods.base import check_detection
from uadray.methods.outside import OutsideMaps
from uadray.plugins import failure
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
    elif is_fitted(run.experiment.method):
        raise ConfigError(f"{run.url} has no checkpoint yet: {run.how_to_resume}")
    if isinstance(detector, OutsideMaps):
        maps = KeptMaps(run.url)
        maps.check(bytes(detector.digest.tolist()))
        detector.look_up(maps)
    return detector.eval()


def try_out(detector: Detector, name: str, shape: tuple[int, int, int]) -> None:
    """Let a detector from outside make a map and a loss of noise, before hours go into its fit.

    Args:
        detector: As it begins; it stays so.
        name: `package.module:Class` of its method.
        shape: (Z, Y, X) of a volume.

    Raises:
        PluginError: it fails, or its map or loss is not what it has to be.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tried = copy.deepcopy(detector)
            brain = torch.rand(2, *shape) > 0.2
            x = torch.rand(2, 1, *shape) * brain[:, None]
            if isinstance(tried, GradientDetector):
                _try_losses(tried.train(), x if tried.ndim == 3 else x[:, :, shape[0] // 2])
            if not isinstance(tried, StreamDetector):  # which have to be fitted first
                with torch.inference_mode():
                    check_detection(tried, tried.eval().detect(x, brain), x, brain)
    except UadrayError as error:
        raise PluginError(f"{name} cannot be used: {error}") from error
    except Exception as error:
        raise PluginError(f"{name} cannot be used: {failure(error, name)}") from error


def _try_losses(detector: GradientDetector, x: torch.Tensor) -> None:
    players = detector.players()
    for player in players:
        noise = torch.randn(len(x), detector.num_noise)
        turn = {"player": player.name} if len(players) > 1 else {}
        losses = detector(x, x, noise, **turn)
        loss = losses.get("loss") if isinstance(losses, dict) else None
        if not isinstance(loss, torch.Tensor) or loss.ndim or not loss.requires_grad:
            raise ConfigError(
                "forward must give a dict whose 'loss' is one number that depends on the "
                f"parameters, was {losses!r:.200}"
            )
        if not bool(loss.isfinite()):
            raise ConfigError("the loss of noise in [0, 1] is not finite")
