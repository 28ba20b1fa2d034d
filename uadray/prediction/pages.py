"""The pages that show predictions: one for each scan, and one that leads to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from uadray import files
from uadray.errors import ConfigError
from uadray.metrics.patients import SCORES
from uadray.prediction.inputs import Item
from uadray.prediction.reference import Reference
from uadray.prediction.scan import Prediction
from uadray.viewer.page import open_case, write_case, write_index
from uadray.viewer.standing import Healthy, placed

INDEX = "index.html"
"""Of the output folder."""


def page_name(item: Item) -> str:
    """Name of a scan's page, in its folder."""
    return f"{item.bids}_viewer.html" if item.bids else "viewer.html"


def write_page(
    out: str, item: Item, prediction: Prediction, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the page of one scan.

    Args:
        out: The output folder.
        item: The scan.
        prediction: What was found in it.
        summary: As it will be kept.

    Returns:
        What to change in the summary: `page`, its name, size and figures; where the page could not
        be made, a note on why.
    """
    grid = prediction.grid

    def image(array: Any) -> Any:
        if array is None:
            return None
        kept = array.astype(np.uint8) if array.dtype == bool else array
        return nib.Nifti1Image(kept, grid.affine)

    try:
        page = write_case(
            files.join(out, item.folder, page_name(item)),
            scan=image(prediction.scan),
            anomaly=image(prediction.anomaly),
            proposal=image(prediction.proposal),
            reconstruction=image(prediction.reconstruction),
            spread=image(prediction.spread),
            truth=image(prediction.truth),
            brain=image(prediction.brain),
            summary=_figures(summary),
            placed=placed(summary["standing"], _healthy(prediction.reference)),
            name=item.name,
            index=files.join(out, INDEX),
        )
    except ConfigError as error:
        return {"notes": [*summary["notes"], f"no page: {error}"]}
    except OSError:
        raise
    except Exception as error:  # a page that cannot be drawn must not cost the maps
        return {"notes": [*summary["notes"], f"no page: {type(error).__name__}: {error}"]}
    return {"page": {"name": page_name(item), "bytes": page.num_bytes}}


def _healthy(reference: Reference | None) -> Healthy | None:
    if reference is None:
        return None
    return Healthy(ages=reference.ages, scores={name: reference.values(name) for name in SCORES})


def write_index_page(out: str, summaries: Sequence[Mapping[str, Any]]) -> str:
    """Write the page that leads to those of all scans; empty where no scan has one.

    Args:
        out: The output folder.
        summaries: Of those that are done.
    """
    cases = []
    for summary in summaries:
        if summary.get("page") is None:
            continue
        url = files.join(out, summary["folder"], summary["page"]["name"])
        try:
            cases.append(open_case(url, _figures(summary), summary["name"]))
        except FileNotFoundError:
            continue
    if not cases:
        return ""
    method = summaries[0]["run"]["name"]
    title = f"{method}: {len(cases)} scans, the highest score first"
    return write_index(files.join(out, INDEX), cases, title=title)


def _figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary in the page's words."""
    proposal, truth = summary["proposal"] or {}, summary["truth"] or {}
    threshold = summary["threshold"] or {}
    figures = {
        "threshold": threshold.get("value"),
        "threshold_fitted_on": threshold.get("fitted_on"),
        "volume_ml": proposal.get("volume_ml"),
        "num_components": proposal.get("components"),
        "largest_ml": proposal.get("largest_ml"),
        "truth_ml": truth.get("volume_ml"),
        "dice": truth.get("dice"),
        "score": summary["top_score"],
        "slice": summary["top_slice"],
        "spread": (summary.get("spread") or {}).get("at_top_score"),
        "brain_ml": summary["brain_ml"],
        "method": summary["run"]["name"],
        "fingerprint": summary["run"]["fingerprint"],
        "seconds": sum(summary["seconds"].values()),
        "warnings": list(summary["warnings"]),
    }
    return {key: value for key, value in figures.items() if value is not None}
