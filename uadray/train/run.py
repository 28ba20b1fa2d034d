"""The run folder: what a fit writes, what evaluation adds, and all that a report reads.

`config.json`, `metrics.jsonl` (one line an epoch), `summary.json`, `checkpoint/`, then `scores/`
and `evaluation/`. A folder is taken up again only by the same experiment on the same cohort.
"""

import json
import os
import platform
from dataclasses import dataclass
from typing import Any, Self

from uadray import files
from uadray.config import Experiment, from_json, to_json
from uadray.errors import CheckpointError, RunError
from uadray.store import Cohort, software_versions


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder on a local path or any fsspec URL."""

    url: str
    experiment: Experiment
    cohort_url: str
    cohort_fingerprint: str
    shape: tuple[int, int, int]

    @classmethod
    def create(cls, url: str, experiment: Experiment, cohort: Cohort) -> Self:
        """Begin a run, or take up one of the same experiment on the same cohort.

        Raises:
            CheckpointError: the folder holds a run of another experiment or cohort.
            RunError: the folder holds something else.
        """
        url = files.normalise(url)
        if files.exists(files.join(url, "config.json")):
            run = cls.open(url)
            if run.experiment != experiment:
                raise CheckpointError(
                    f"{url} holds a run of {run.experiment.name} with other settings "
                    f"({_differences(run.experiment, experiment)}): choose another --out"
                )
            if run.cohort_fingerprint != cohort.fingerprint:
                raise CheckpointError(
                    f"{url} was fitted on cohort {run.cohort_fingerprint} ({run.cohort_url}), not "
                    f"on {cohort.fingerprint} ({cohort.url}): choose another --out"
                )
            return run
        if files.list_names(url):
            raise RunError(f"{url} is not empty and holds no run: choose another --out")
        config = {
            "name": experiment.name,
            "experiment": to_json(experiment),
            "fingerprint": experiment.fingerprint,
            "cohort": {
                "name": cohort.name,
                "url": cohort.url,
                "fingerprint": cohort.fingerprint,
                "shape": list(cohort.shape),
            },
            "versions": software_versions(),
            "hardware": hardware(),
        }
        files.write_json(files.join(url, "config.json"), config)
        return cls.open(url)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a run folder.

        Raises:
            RunError: there is none at `url`.
        """
        url = files.normalise(url)
        try:
            config = files.read_json(files.join(url, "config.json"))
        except FileNotFoundError:
            raise RunError(f"{url}: no run there; fit one with jobs/train.py") from None
        except json.JSONDecodeError as error:
            raise RunError(f"{url}/config.json is damaged ({error}): fit the run again") from None
        cohort = config["cohort"]
        z, y, x = cohort["shape"]
        return cls(
            url=url,
            experiment=from_json(Experiment, config["experiment"]),
            cohort_url=cohort["url"],
            cohort_fingerprint=cohort["fingerprint"],
            shape=(z, y, x),
        )

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a fit left that has ended, well or not; None while it has not."""
        url = files.join(self.url, "summary.json")
        return files.read_json(url) if files.exists(url) else None

    @property
    def finished(self) -> bool:
        """Whether the fit has ended well."""
        return (self.summary or {}).get("status") == "finished"

    def metrics(self) -> list[dict[str, Any]]:
        """One record an epoch."""
        url = files.join(self.url, "metrics.jsonl")
        if not files.exists(url):
            return []
        return [json.loads(line) for line in files.read_bytes(url).decode().splitlines()]

    def write_metrics(self, records: list[dict[str, Any]]) -> None:
        """Replace the record of epochs, whole."""
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records)
        files.write_bytes(files.join(self.url, "metrics.jsonl"), text.encode())

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the fit as ended; `status` says whether it is `finished` or `failed`."""
        files.write_json(files.join(self.url, "summary.json"), summary)

    def reopen(self) -> None:
        """Take back the mark of a fit that has failed: it is begun again."""
        files.remove(files.join(self.url, "summary.json"))

    @property
    def asked_to_stop(self) -> bool:
        """Whether a fit by several workers is to end behind its present epoch."""
        return files.exists(files.join(self.url, "stop"))

    def ask_to_stop(self, stop: bool = True) -> None:
        """Ask a fit by several workers to end behind its present epoch, or take that back."""
        url = files.join(self.url, "stop")
        files.write_bytes(url, b"") if stop else files.remove(url)


def hardware() -> dict[str, Any]:
    """What the figures of a run were measured on, without naming the machine."""
    # Whatever reads run folders alone, such as a report, needs no torch.
    import torch

    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
    }


def _differences(old: Experiment, new: Experiment) -> str:
    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        return {k: v for n, inner in value.items() for k, v in flat(inner, f"{prefix}.{n}").items()}

    a, b = flat(to_json(old)), flat(to_json(new))
    changed = [
        f"{k[1:]}: {a.get(k)} there, {b.get(k)} here" for k in sorted(a | b) if a.get(k) != b.get(k)
    ]
    return "; ".join(changed)
