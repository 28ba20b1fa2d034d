"""The lists in a folder of predictions: of the scans that are done, and of those that are not."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from uadray import files
from uadray.naming import name_key
from uadray.prediction.inputs import Item
from uadray.prediction.outputs import QUARANTINE, TABLE, place_of
from uadray.prediction.reference import MAIN
from uadray.preparation.layouts import LeftOut
from uadray.preparation.layouts.listing import printable


def earlier(out: str, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Summaries of the scans that other calls have left in the folder, as its table lists them."""
    try:
        table = files.read_bytes(files.join(out, TABLE)).decode()
    except (FileNotFoundError, ValueError):
        return []
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    # A scan that could not be used may have results of an earlier content in its place.
    places = dict.fromkeys(
        place
        for row in rows
        if row.get("name") and row.get("status") in (None, "done")
        for place in ([row["summary"]] if row.get("summary") else _likely_places(row["name"]))
    )
    own = {name_key(item.summary) for item in items}
    others = [place for place in places if name_key(place) not in own]
    with ThreadPoolExecutor(16) as pool:
        return [one for one in pool.map(lambda place: _summary_at(out, place), others) if one]


def _likely_places(name: str) -> Iterator[str]:
    """Where the summary of a scan may be that a table without the places names."""
    entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    folder = "/".join([f"sub-{entities.get('sub')}", *session, "anat"])
    yield from (f"{name}/summary.json", f"{folder}/{name}_desc-anomaly_summary.json")


def _summary_at(out: str, place: str) -> dict[str, Any] | None:
    """The summary of a scan that is done; None where it is not there any more."""
    try:
        summary: dict[str, Any] = files.read_json(files.join(out, place))
        if summary["status"] == "done" and place_of(summary) == place:
            return summary
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def write_tables(
    out: str,
    summaries: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, str]],
    items: Sequence[Item],
    left_out: Sequence[LeftOut] = (),
) -> None:
    """Write `predictions.tsv`, the highest score first, and `quarantine.jsonl`.

    Both also name the files that were left out, so that every file is accounted for.

    Args:
        out: The output folder.
        summaries: Of all scans that are done.
        failures: Of this call; those of other scans that are on record stay.
        items: The scans of this call.
        left_out: Of this call; likewise.
    """
    absent = [*failures, *map(_left_out, left_out)]
    known = {printable(item.scan.image) for item in items} | {one["source"] for one in absent}
    absent = [*(one for one in _quarantined(out) if one["source"] not in known), *absent]
    heads = ["name", "top_score", "top_slice", "mean_score", "proposal_ml", "components"]
    heads += ["largest_ml", "brain_ml", "age", "percentile", "warnings"]
    lines = ["\t".join((*heads, "status", "reason", "summary"))]
    for one in sorted(summaries, key=lambda one: -float(one["top_score"])):
        proposal = one["proposal"] or {"volume_ml": "n/a", "components": "n/a", "largest_ml": "n/a"}
        cells = [one["name"], one["top_score"], one["top_slice"], one["mean_score"]]
        cells += [proposal["volume_ml"], proposal["components"], proposal["largest_ml"]]
        cells += [one["brain_ml"], *_standing(one), len(one["warnings"]), "done", "n/a"]
        cells.append(place_of(one))
        lines.append("\t".join(map(_cell, cells)))
    for one in absent:
        status = "left out" if one["reason"].startswith(LEFT_OUT) else "quarantined"
        reason = one["reason"].removeprefix(LEFT_OUT)
        cells = [one["name"], *["n/a"] * (len(heads) - 1), status, reason, ""]
        lines.append("\t".join(map(_cell, cells)))
    files.write_bytes(files.join(out, TABLE), ("\n".join(lines) + "\n").encode())
    text = "".join(json.dumps(dict(one)) + "\n" for one in absent)
    files.write_bytes(files.join(out, QUARANTINE), text.encode())


def _standing(summary: Mapping[str, Any]) -> tuple[Any, Any]:
    """Age, and the percentile among healthy people of similar age, or of all."""
    standing = summary.get("standing") or {"age": None, "scores": {}}
    one = standing["scores"].get(MAIN, {})
    placed = one.get("similar_age") or one.get("all") or {"percentile": None}
    found = standing["age"], placed["percentile"]
    return ("n/a" if found[0] is None else found[0]), ("n/a" if found[1] is None else found[1])


LEFT_OUT = "left out: "
"""How the reason begins of a file that was found and is not among the scans."""


def _left_out(one: LeftOut) -> dict[str, str]:
    path = printable(one.path)
    return {
        "name": path.rsplit("/", 1)[-1],
        "source": path,
        "reason": f"{LEFT_OUT}{one.reason}",
    }


def _quarantined(out: str) -> list[dict[str, str]]:
    """What the folder's list of scans that could not be used holds; nothing where it is damaged."""
    try:
        text = files.read_bytes(files.join(out, QUARANTINE)).decode()
        records = [json.loads(line) for line in text.splitlines()]
        return [{key: str(one[key]) for key in ("name", "source", "reason")} for one in records]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def _cell(value: Any) -> str:
    """A value as a cell of a table; a name may hold tabs and ends of lines."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(printable(str(value)).split())
