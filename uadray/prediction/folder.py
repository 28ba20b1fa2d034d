"""Many scans: those that are done are left alone, bad ones quarantined, the others go on."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from uadray import attempts, files
from uadray.device import compute_device
from uadray.errors import ScanError, UadrayError
from uadray.prediction import lists, outputs, pages, places
from uadray.prediction.inputs import Item
from uadray.prediction.model import Model
from uadray.prediction.model_folder import open_model
from uadray.prediction.scan import predict_scan
from uadray.prediction.settings import PredictConfig
from uadray.preparation.layouts import LeftOut, Scan
from uadray.preparation.layouts.listing import printable
from uadray.store import storage_errors

_log = logging.getLogger(__name__)

FEW = 8
"""Up to this many scans are predicted in this process; more go through Ray, unless asked."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one scan."""

    name: str
    """Of the item."""
    reason: str = ""
    """Why it could not be used; empty where it was predicted."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a call left in its output folder."""

    out: str
    """The folder."""
    summaries: tuple[dict[str, Any], ...]
    """Of all scans that are done, by name."""
    num_kept: int
    """How many of them were done before."""
    failures: tuple[dict[str, str], ...]
    """Name, source and reason of those that could not be used."""
    left_out: tuple[LeftOut, ...] = ()
    """Files of the folders that were taken for no scans, with the reason."""
    index: str = ""
    """The page that shows them; empty where none was made."""


Engine = Callable[[Sequence[Item]], Iterable[Outcome]]
"""Predicts items in any order, and says what became of each as it ends."""

Report = Callable[[Outcome], None]
"""Called as scans end."""


def predict_items(
    model: Model,
    items: Sequence[Item],
    out: str,
    config: PredictConfig | None = None,
    *,
    engine: Engine | None = None,
    viewer: bool = False,
    left_out: Sequence[LeftOut] = (),
    begin: Callable[[int], None] = lambda kept: None,
    report: Report = lambda outcome: None,
) -> Predicted:
    """Predict scans into a folder; called again, it does what is missing.

    Args:
        model: From `open_model`.
        items: The scans.
        out: The output folder, on a local path or any fsspec URL.
        config: See `PredictConfig`.
        engine: Who predicts; in this process, one after the other, by default.
        viewer: Whether to make the page that leads to those of the scans.
        left_out: What was found besides the scans; the tables name it with its reason.
        begin: Called with the number of scans that were done before.
        report: Called as each of the others ends.

    Raises:
        PredictError: the folder is of another run or settings, or cannot be written.
        NoThresholdError: there is no threshold to propose with.
    """
    config = config or PredictConfig()
    out = files.normalise(out)
    engine = engine or InProcess(model=model, out=out, config=config)
    with outputs.claimed(out, outputs.request_of(model, config), items):
        return _predict_claimed(
            out, places.placed(out, items), engine, viewer, left_out, begin, report
        )


def _predict_claimed(
    out: str,
    items: Sequence[Item],
    engine: Engine,
    viewer: bool,
    left_out: Sequence[LeftOut],
    begin: Callable[[int], None],
    report: Report,
) -> Predicted:
    before = _done(out, items)
    pending = [item for item in items if item.name not in before]
    begin(len(before))
    failures = []
    named = {item.name: item for item in pending}
    for outcome in engine(pending) if pending else ():
        report(outcome)
        if outcome.reason:
            source = named[outcome.name].scan.image
            failure = {"name": outcome.name, "source": source, "reason": outcome.reason}
            failures.append({key: printable(value) for key, value in failure.items()})
    summaries = _done(out, items)
    failures.sort(key=lambda failure: failure["name"])
    ordered = [summaries[item.name] for item in items if item.name in summaries]
    try:
        everything = [*ordered, *lists.earlier(out, items)]
        lists.write_tables(out, everything, failures, items, left_out)
        files.remove(files.join(out, ".begun"))
        index = pages.write_index_page(out, everything) if viewer else ""
    except OSError as error:
        raise outputs.unwritable(out, error) from None
    return Predicted(
        out=out,
        summaries=tuple(ordered),
        num_kept=len(before),
        failures=tuple(failures),
        left_out=tuple(left_out),
        index=index,
    )


def _done(out: str, items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Name -> summary of the items that are done."""
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(lambda item: outputs.done(out, item), items))
    return {i.name: one for i, one in zip(items, records, strict=True) if one is not None}


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """Predicts one scan after the other in this process."""

    model: Model
    out: str
    config: PredictConfig
    viewer: bool = False
    device: torch.device | None = None

    def __call__(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """See `Engine`."""
        for item in items:
            yield self.predict(item)

    def predict(self, item: Item) -> Outcome:
        """Predict one scan, see `predict_item`."""
        return predict_item(
            self.model, item, self.out, self.config, viewer=self.viewer, device=self.device
        )


@dataclass(frozen=True, kw_only=True)
class OnRay:
    """Predicts scans on the cluster, in actors that hold the model, one scan at a time each."""

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
        """See `Engine`."""
        # A few scans are predicted without Ray, which takes seconds to load.
        from uadray import cluster, each

        cluster.connect()
        done = each.in_actors(self.load, items, workers=self.workers, gpus=self.gpus)
        return (outcome for _, outcome in done)

    def load(self) -> Callable[[Item], Outcome]:
        """Open the model in an actor."""
        device = compute_device("cuda" if self.gpus else "cpu")
        model = open_model(self.model, cohort=self.cohort)
        model.detector.to(device)
        return InProcess(
            model=model, out=self.out, config=self.config, viewer=self.viewer, device=device
        ).predict


def predict_item(
    model: Model,
    item: Item,
    out: str,
    config: PredictConfig,
    *,
    viewer: bool = False,
    device: torch.device | None = None,
) -> Outcome:
    """Predict one scan and write its results, unless its process dies each time.

    Whatever goes wrong with the scan is its own: unreadable, too large, of a kind that a library
    does not expect. It is left out with a reason and the others go on.

    Raises:
        PredictError: the target cannot be written.
    """
    try:
        return _predict_item(model, item, out, config, viewer, device)
    except OSError as error:
        raise outputs.unwritable(out, error) from None


def _predict_item(
    model: Model,
    item: Item,
    out: str,
    config: PredictConfig,
    viewer: bool,
    device: torch.device | None,
) -> Outcome:
    deaths = outputs.begin(out, item)
    try:
        attempts.refuse(item.scan.image, deaths, "predicted")
        with _blamed_on(item.scan), storage_errors(item.scan.image):
            prediction = predict_scan(model, item.scan, config, device=device)
        with _blamed_on(item.scan, (OSError,)):
            outputs.write(out, item, prediction, viewer=viewer)
    except ScanError as error:
        left = files.exists(files.join(out, item.summary))
        kept = f" (results of what was there before are still in {item.folder})" if left else ""
        return Outcome(name=item.name, reason=f"{error}{kept}")
    finally:
        outputs.end(out, item)
    return Outcome(name=item.name)


@contextmanager
def _blamed_on(scan: Scan, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn each error, but those that pass, into the scan's own.

    Raises:
        ScanError: it could not be predicted.
    """
    try:
        yield
    except passing:
        raise
    except ScanError:
        raise
    except UadrayError as error:
        named = str(error).startswith(scan.image)
        raise ScanError(str(error) if named else f"{scan.image}: {error}") from error
    except MemoryError as error:
        raise ScanError(
            f"{scan.image}: does not fit in memory; look at the file, or use fewer --workers"
        ) from error
    except Exception as error:  # whatever a library raises on a file that it does not expect
        _log.debug("%s", scan.image, exc_info=True)
        text = " ".join(str(error).split())[:300]
        raise ScanError(
            f"{scan.image}: cannot be predicted ({type(error).__name__}: {text}); look at the file"
        ) from error
