"""The reconstruction of a detector as an ONNX network, for use without torch.

Its input `image` is (B, 1, Z, Y, X) float32 in [0, 1], prepared as `preprocessing.json` says; its
output `reconstruction` has the same shape. Scores, post-processing and the way back to the scanner
are not in it.
"""

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from uadray.errors import ConfigError
from uadray.methods import Detector

OPSET = 18
"""Version of the ONNX operators."""


class _Reconstruction(nn.Module):
    """`reconstruct` as `forward`."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> Tensor:
        return self.detector.reconstruct(image)


def has_onnx() -> bool:
    """Whether the packages that the export needs are installed."""
    return all(find_spec(name) for name in ("onnx", "onnxscript"))


def reconstruction_onnx(detector: Detector, shape: tuple[int, int, int]) -> bytes:
    """The reconstruction as an ONNX file, for batches of any size.

    Args:
        detector: In evaluation mode, on the CPU.
        shape: (Z, Y, X) of a volume.

    Raises:
        ConfigError: the method has no reconstruction, one that ONNX cannot hold, or the packages
            are not installed.
    """
    if not detector.has_reconstruction:
        raise ConfigError(f"{type(detector).__name__} has no reconstruction to write as ONNX")
    if not has_onnx():
        raise ConfigError("writing ONNX needs its packages: pip install -e '.[onnx]'")
    example = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    try:
        # The exporter reports its progress on standard output, and each shape it guesses.
        with _silence(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                _Reconstruction(detector).eval(),
                (example,),
                input_names=["image"],
                output_names=["reconstruction"],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(buffer)  # type: ignore[arg-type]  # it takes streams as well
    except Exception as error:  # whatever an operator without a counterpart raises
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the reconstruction of {type(detector).__name__} cannot be written as ONNX ({reason})"
        ) from None
    return buffer.getvalue()


@contextlib.contextmanager
def _silence():  # type: ignore[no-untyped-def]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
