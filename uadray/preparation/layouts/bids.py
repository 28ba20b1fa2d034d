"""BIDS folders, raw or derived (Gorgolewski et al. 2016): scans, masks and scanners."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from uadray import files
from uadray.preparation.layouts.listing import MAX_SHOWN
from uadray.preparation.layouts.naming import BIDS_RAW
from uadray.preparation.layouts.scans import (
    IMAGE_ENDINGS,
    Scan,
    Scans,
    checked,
    find_files,
    nothing_found,
    stem,
)
from uadray.preparation.layouts.tables import ABSENT, TableError, read_table

LESION_WORDS = ("lesion", "lesions", "tumor", "tumour", "stroke", "wmh")
"""How a part of a lesion mask's name ends."""

OWN_SPACES = ("orig", "individual", "native", "scanner")
"""Values of `space` of a mask that lies on its scan's own grid, besides the modality."""

_MASK = re.compile(r"_(mask|roi)(?i:\.nii(\.gz)?)$")
_SITE_COLUMNS = ("scanner", "scanner_id", "site", "site_id", "center", "centre")
_DESCRIBING = {"space", "desc", "label", "res", "den", "mask"}


def bids(root: str, modality: str = "T1w") -> Scans:
    """Scans of a BIDS folder, `sub-*[/ses-*]/anat/*_MODALITY.nii[.gz]`.

    Of several that fit in one session one is taken: that with the fewest entities (so the plain
    one before `acq-`, `ce-` or `rec-`), then that of the first run, then the first by name; the
    scan's notes name the others. Ask for another with its entities before the modality, such as
    `acq-mprage_T1w` or `run-2_T1w`.

    Masks are files anywhere in the folder, mostly under `derivatives/`, that contradict none of
    the scan's entities, end in `_mask` or `_roi`, and have a part that ends in `brain`, or in one
    of `LESION_WORDS`, such as `_desc-brain_mask`, `_label-lesion_roi` or `_lesion_mask`. A mask in
    a `space` that is not the scan's is passed over.

    The scanner is `Manufacturer Model FieldT` of the sidecar JSON files (those of folders above
    are inherited), else what `participants.tsv` has in a column such as scanner or site. Where
    these cannot be read it is unknown, which the scan's notes say. All else in `participants.tsv`,
    and the field strength, are covariates.

    Args:
        root: Folder or URL of the data set, or of one of its derivatives.
        modality: BIDS suffix, such as T1w or FLAIR, with entities before it if need be.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root, (*IMAGE_ENDINGS, ".json"))
    images = [name for name in names if not name.lower().endswith(".json")]
    *asked, suffix = modality.split("_")
    masks = _by_session(name for name in images if _MASK.search(name))
    candidates: dict[tuple[str, str], list[str]] = {}
    others = set()
    reasons = {}
    for name in images:
        match = BIDS_RAW.search(name)
        if _MASK.search(name):
            reasons[name] = "a mask that is of no scan or not of its brain or lesion"
            continue
        if match is None:
            reasons[name] = "not in sub-*/[ses-*/]anat/, or not named as BIDS has it"
            continue
        entities = _entities(match["entities"])
        if match["what"] != suffix or not set(asked) <= set(match["entities"].split("_")):
            others.add("_".join([*asked, match["what"]]) if asked else match["what"])
            reasons[name] = f"{match['what']}, not {modality}"
        elif entities.get("part", "mag") == "mag":
            session = (entities["sub"], entities.get("ses", ""))
            candidates.setdefault(session, []).append(name)
            reasons[name] = "another of a session of which one is taken"
        else:
            reasons[name] = "no magnitude image (part)"
    if not candidates:
        raise nothing_found(
            root,
            looked_for=f"sub-*[/ses-*]/anat/*_{modality}.nii[.gz]",
            others=others,
            what="modalities in its anat folders",
            advice="choose one of these with --modality"
            if others
            else "give the folder that holds sub-*/",
            names=names,
        )
    chosen = [
        (name, alternatives)
        for alternatives in candidates.values()
        for name in alternatives
        # Twice where .nii and .nii.gz of one name lie in one folder: refused below.
        if stem(name) == stem(min(alternatives, key=_plainness))
    ]
    known = _known(root, names, [name for name, _ in chosen])
    readings = (
        _scan(root, name, alternatives, masks, known[name]) for name, alternatives in chosen
    )
    scans = checked(readings, root, names, reasons)
    doubts = sorted({one.doubt for one in known.values() if one.doubt})
    more = f" and {len(doubts) - MAX_SHOWN} more" if len(doubts) > MAX_SHOWN else ""
    scans.remarks = tuple(f"  note: {doubt}" for doubt in doubts[:MAX_SHOWN])
    scans.remarks += (f"  note:{more}",) if more else ()
    return scans


def _scan(
    root: str,
    name: str,
    alternatives: Sequence[str],
    masks: Mapping[tuple[str, str], Sequence[str]],
    known: "_Known",
) -> Scan:
    match = BIDS_RAW.search(name)
    assert match is not None
    entities = _entities(match["entities"])
    notes = []
    if len(alternatives) > 1:
        rest = ", ".join(sorted(stem(other) for other in alternatives if other != name))
        notes.append(f"taken of {len(alternatives)} in its session, the others being {rest}")
    place = {}
    for kind, words in (("brain", ("brain",)), ("lesion", LESION_WORDS)):
        own = masks.get((entities["sub"], entities.get("ses", "")), ())
        fitting = _once(root, _fitting_masks(own, entities, match["what"], words))
        place[kind] = files.join(root, fitting[0]) if fitting else ""
        if len(fitting) > 1:
            notes.append(f"{kind} mask {fitting[0]} taken of {len(fitting)}")
    notes += [known.doubt] if known.doubt else []
    return Scan(
        id=match["entities"],
        subject=f"sub-{entities['sub']}",
        session=entities.get("ses", ""),
        modality=match["what"],
        scanner=known.scanner,
        image=files.join(root, name),
        brain=place["brain"],
        lesion=place["lesion"],
        notes="; ".join(notes),
        covariates=known.covariates,
    )


def _entities(name: str) -> dict[str, str]:
    """`sub-01_ses-2_run-1` as a dictionary."""
    pairs = (part.split("-", 1) for part in name.split("_") if "-" in part)
    return {key: value for key, value in pairs}


def _plainness(name: str) -> tuple[int, int, str]:
    """Orders the scans of a session, the one to take first."""
    entities = _entities(stem(name))
    run = entities.pop("run", "1")
    return len(entities), int(run) if run.isdigit() else 1, name


def _by_session(masks: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Subject and session -> masks."""
    sessions: dict[tuple[str, str], list[str]] = {}
    for name in masks:
        entities = _entities(stem(name))
        session = (entities.get("sub", ""), entities.get("ses", ""))
        sessions.setdefault(session, []).append(name)
    return sessions


def _fitting_masks(
    masks: Sequence[str], scan: Mapping[str, str], modality: str, words: tuple[str, ...]
) -> list[str]:
    """Of the masks of a session those of a kind that may belong to a scan.

    Those that share most with it, by name.
    """
    shared = {}
    for name in masks:
        parts = stem(name).split("_")
        mask = _entities("_".join(parts))
        if not any(_says(part.lower(), words) for part in parts):
            continue
        own = {"", scan.get("space", ""), *OWN_SPACES, modality}
        space_fits = mask.get("space", "") in ({scan["space"]} if "space" in scan else own)
        telling = {key: value for key, value in mask.items() if key not in _DESCRIBING}
        if space_fits and telling.items() <= scan.items():
            shared[name] = len(telling)
    most = max(shared.values(), default=0)
    return sorted(name for name, count in shared.items() if count == most)


def _says(part: str, words: tuple[str, ...]) -> bool:
    """Whether a part of a mask's name, in lower case, says what it is of."""
    if part.startswith(("sub-", "ses-")):
        return False
    return any(part.endswith(word) and not part.endswith(f"non{word}") for word in words)


def _once(root: str, names: Sequence[str]) -> list[str]:
    """Names of one file, reached by links to its folder, only once: the shortest."""
    if len(names) < 2 or files.is_remote(root):
        return list(names)
    places: dict[str, str] = {}
    for name in sorted(names, key=len):
        places.setdefault(os.path.realpath(files.join(root, name)), name)
    return sorted(places.values())


@dataclass(frozen=True)
class _Known:
    """What sidecars and participants.tsv say of a scan."""

    scanner: str
    """Empty where neither names one."""
    doubt: str
    """Why it could not be read; mostly empty."""
    covariates: tuple[tuple[str, str], ...]
    """Of the person, see `Scan`."""


def _known(root: str, names: Sequence[str], scans: Sequence[str]) -> dict[str, _Known]:
    """What is known of each scan."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(".json"):
            by_folder.setdefault(_folder(name), []).append(name)
    sidecars = {scan: _sidecars(by_folder, scan) for scan in scans}
    fields = _read_all(root, {name for ordered in sidecars.values() for name in ordered})
    people, why = _participants(root)
    known = {}
    for scan, ordered in sidecars.items():
        merged: dict[str, object] = {}
        problems = []
        for name in ordered:
            value = fields[name]
            if isinstance(value, str):
                problems.append(value)
            else:
                merged |= value
        person = people.get(scan.split("/", 1)[0], {})
        scanner = _scanner(merged) or _site(person)
        problems += [why] if why and not scanner else []
        doubt = ", ".join(problems)
        tesla = _word(merged, "MagneticFieldStrength")
        known[scan] = _Known(
            scanner=scanner,
            doubt=f"{doubt}: scanner unknown" if doubt and not scanner else doubt,
            covariates=(*person.items(), *([("MagneticFieldStrength", tesla)] if tesla else [])),
        )
    return known


def _sidecars(by_folder: Mapping[str, Sequence[str]], scan: str) -> list[str]:
    """JSON files that apply to a scan, from the most general to its own."""
    match = BIDS_RAW.search(scan)
    assert match is not None
    own = set(match["entities"].split("_"))
    parts = _folder(scan).split("/")
    ordered = []
    for depth in range(len(parts) + 1):
        fitting = []
        for name in by_folder.get("/".join(parts[:depth]), ()):
            *entities, suffix = name.rsplit("/", 1)[-1][: -len(".json")].split("_")
            if suffix == match["what"] and set(entities) <= own:
                fitting.append((len(entities), name))
        ordered += [name for _, name in sorted(fitting)]
    return ordered


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _read_all(root: str, names: Iterable[str]) -> dict[str, dict[str, object] | str]:
    """The JSON objects in files, or in words why one cannot be read.

    They are fetched many at a time: a store answers slowly.
    """
    ordered = sorted(names)
    with ThreadPoolExecutor(16) as pool:
        contents = list(pool.map(lambda name: _read_sidecar(root, name), ordered))
    return dict(zip(ordered, contents, strict=True))


def _read_sidecar(root: str, name: str) -> dict[str, object] | str:
    try:
        value = json.loads(files.read_bytes(files.join(root, name)))
    except (OSError, ValueError, RecursionError) as error:
        if _is_no_answer(root, error):
            raise
        return f"its sidecar {name} cannot be read ({_reason(error)})"
    return value if isinstance(value, dict) else f"its sidecar {name} holds no JSON object"


def _is_no_answer(root: str, error: Exception) -> bool:
    """Whether a store does not answer, which is no fault of the file and may pass."""
    absent = isinstance(error, (FileNotFoundError, PermissionError))
    return files.is_remote(root) and isinstance(error, OSError) and not absent


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _scanner(fields: Mapping[str, object]) -> str:
    """`Siemens Prisma 3T`, of what the sidecar says; else a station or an institution."""
    maker, model = (_word(fields, key) for key in ("Manufacturer", "ManufacturersModelName"))
    if model.lower().startswith(maker.lower()):
        maker = ""
    name = " ".join(part for part in (maker, model) if part)
    try:
        strength = float(str(fields["MagneticFieldStrength"]))
        tesla = f"{strength:.2g}T" if math.isfinite(strength) else ""
    except (KeyError, ValueError):
        tesla = ""
    if name:
        return f"{name} {tesla}".strip()
    return _word(fields, "StationName") or _word(fields, "InstitutionName") or tesla


def _word(fields: Mapping[str, object], key: str) -> str:
    """A field that is text or a number; lists and objects are none."""
    value = fields.get(key)
    return str(value).strip() if value and isinstance(value, (str, int, float)) else ""


def _participants(root: str) -> tuple[dict[str, dict[str, str]], str]:
    """Subject -> its row of participants.tsv, without who it is; or why it cannot be read."""
    url = files.join(root, "participants.tsv")
    try:
        # BIDS wants tabs; spreadsheets save what they like under that name.
        columns, rows = read_table(url, separators="\t;,")
    except FileNotFoundError:
        dangling = not files.is_remote(url) and os.path.islink(url)
        return {}, "participants.tsv is a link to what is not there" if dangling else ""
    except (OSError, TableError) as error:
        if _is_no_answer(root, error):
            raise
        return {}, f"participants.tsv cannot be read ({_reason(error)})"
    person = {column.lower(): column for column in columns}.get("participant_id")
    if person is None:
        return {}, "participants.tsv has no column participant_id"
    people = {}
    for row in rows:
        if subject := row.pop(person):
            people[subject if subject.startswith("sub-") else f"sub-{subject}"] = row
    return people, ""


def _site(person: Mapping[str, str]) -> str:
    """Scanner or site of a row, if it has such a column and it is known."""
    known = {column.lower(): value for column, value in person.items()}
    site = next((known[name] for name in _SITE_COLUMNS if name in known), "")
    return "" if site.lower() in ABSENT else site
