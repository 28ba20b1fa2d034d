"""Thresholds frozen in the run folder before the test part is opened.

`evaluation/<cohort>-threshold.json` lists every threshold that was fitted for a cohort, each with
the settings it was fitted under and their fingerprint. The same settings take the same threshold
ever after, so that no figure of the test part can lead to another one unseen.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from uadray import files
from uadray.errors import EvaluationError
from uadray.metrics.counts import Threshold
from uadray.runs.folder import Run
from uadray.runs.reading import THRESHOLDS, folder_of


def freeze(
    run: Run,
    cohort: str,
    settings: dict[str, Any],
    fit: Callable[[], tuple[Threshold, Sequence[Threshold]]],
) -> tuple[Threshold, list[Threshold], str]:
    """Return the threshold that was frozen under these settings, or fit and freeze one.

    Args:
        run: Whose scores are thresholded.
        cohort: Name of the cohort that will be reported on.
        settings: JSON value of all that decides the threshold.
        fit: Fits it, and again on resamples of its people; called only where none is frozen.

    Returns:
        The threshold, the refitted ones (none where an earlier version froze it), and the
        fingerprint of the settings: 16 hexadecimal digits.

    Raises:
        EvaluationError: The file is damaged, or holds a threshold of other settings under this
            fingerprint.
    """
    url = files.join(folder_of(run.url), f"{cohort}{THRESHOLDS}.json")
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    listed = _read(url)
    for entry in listed:
        if entry["fingerprint"] == fingerprint:
            if entry["settings"] != settings:
                raise EvaluationError(
                    f"{url}: the threshold {fingerprint} was frozen under other settings than its "
                    "fingerprint says; the file was edited: restore it from a copy"
                )
            refits = [_threshold(entry, url, one) for one in entry.get("refits", ())]
            return _threshold(entry, url), refits, fingerprint
    threshold, refitted = fit()
    entry = {
        "fingerprint": fingerprint,
        "settings": settings,
        "level": int(threshold.level),
        "value": float(threshold.value),
        "rule": threshold.rule,
        "fitted_on": threshold.fitted_on,
        "refits": [{"level": int(one.level), "value": float(one.value)} for one in refitted],
    }
    files.write_json(url, {"frozen": [*listed, entry]})
    return threshold, list(refitted), fingerprint


def frozen(run_url: str, cohort: str, fingerprint: str) -> tuple[Threshold, list[Threshold]]:
    """The threshold of a fingerprint, and the refitted ones.

    Args:
        run_url: The run folder.
        cohort: Name of the cohort that it was fitted for.
        fingerprint: Of its settings.

    Raises:
        EvaluationError: there is none, or the file is damaged.
    """
    url = files.join(folder_of(run_url), f"{cohort}{THRESHOLDS}.json")
    for entry in _read(url):
        if entry["fingerprint"] == fingerprint:
            refits = [_threshold(entry, url, one) for one in entry.get("refits", ())]
            return _threshold(entry, url), refits
    raise EvaluationError(f"{url} does not list the threshold {fingerprint}")


def _read(url: str) -> list[dict[str, Any]]:
    try:
        frozen = files.read_json(url)["frozen"]
        if all(isinstance(entry["fingerprint"], str) and "settings" in entry for entry in frozen):
            return list(frozen)
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        pass
    raise EvaluationError(
        f"{url} is damaged: it was to list frozen thresholds with their settings; restore it from "
        "a copy, or move it away to have them fitted again"
    )


def _threshold(entry: dict[str, Any], url: str, refit: Any = None) -> Threshold:
    try:
        chosen = entry if refit is None else refit
        return Threshold(
            level=int(chosen["level"]),
            value=float(chosen["value"]),
            rule=str(entry["rule"]),
            fitted_on=str(entry["fitted_on"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EvaluationError(
            f"{url}: the threshold {entry['fingerprint']} is damaged ({error}); restore the file "
            "from a copy, or move it away to have it fitted again"
        ) from None
