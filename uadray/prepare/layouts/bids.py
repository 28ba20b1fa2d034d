"""BIDS folders, raw or derived (Gorgolewski et al. 2016): scans, masks and scanners."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import fsspec
import pandas as pd

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.prepare.layouts.naming import BIDS_RAW
from uadray.prepare.layouts.scans import (
    IMAGE_ENDINGS,
    Scan,
    checked,
    find_files,
    nothing_found,
    stem,
)

LESION_WORDS = ("lesion", "lesions", "tumor", "tumour", "stroke", "wmh")
"""How a part of a lesion mask's name ends."""

OWN_SPACES = ("orig", "individual", "native", "scanner")
"""Values of `space` of a mask that lies on its scan's own grid, besides the modality."""

_MASK = re.compile(r"_(mask|roi)\.nii(\.gz)?$")
_SITE_COLUMNS = ("scanner", "scanner_id", "site", "site_id", "center", "centre")
_DESCRIBING = {"space", "desc", "label", "res", "den", "mask"}


def bids(root: str, modality: str = "T1w") -> list[Scan]:
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
    are inherited), else what `participants.tsv` has in a column such as scanner or site.

    Args:
        root: Folder or URL of the data set, or of one of its derivatives.
        modality: BIDS suffix, such as T1w or FLAIR, with entities before it if need be.

    Raises:
        NoScanFoundError: see `Layout`.
    """
    root = files.normalise(root)
    names = find_files(root, (*IMAGE_ENDINGS, ".json"))
    images = [name for name in names if not name.endswith(".json")]
    *asked, suffix = modality.split("_")
    masks = _by_session(name for name in images if _MASK.search(name))
    candidates: dict[tuple[str, str], list[str]] = {}
    others = set()
    for name in images:
        match = BIDS_RAW.search(name)
        if match is None or _MASK.search(name):
            continue
        entities = _entities(match["entities"])
        if match["what"] != suffix or not set(asked) <= set(match["entities"].split("_")):
            others.add("_".join([*asked, match["what"]]) if asked else match["what"])
        elif entities.get("part", "mag") == "mag":
            session = (entities["sub"], entities.get("ses", ""))
            candidates.setdefault(session, []).append(name)
    if not candidates:
        raise nothing_found(
            root,
            looked_for=f"sub-*[/ses-*]/anat/*_{modality}.nii[.gz]",
            others=others,
            what="modalities in its anat folders",
            advice="choose one of these with --modality"
            if others
            else "give the folder that holds sub-*/",
            names=images,
        )
    chosen = [
        (name, alternatives)
        for alternatives in candidates.values()
        for name in alternatives
        # Twice where .nii and .nii.gz of one name lie side by side: refused below.
        if stem(name) == stem(min(alternatives, key=_plainness))
    ]
    scanners = _scanners(root, names, [name for name, _ in chosen])
    found = (_scan(root, name, alternatives, masks, scanners) for name, alternatives in chosen)
    return checked(found, root)


def _scan(
    root: str,
    name: str,
    alternatives: Sequence[str],
    masks: Mapping[tuple[str, str], Sequence[str]],
    scanners: Mapping[str, str],
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
        fitting = _fitting_masks(own, entities, match["what"], words)
        place[kind] = files.join(root, fitting[0]) if fitting else ""
        if len(fitting) > 1:
            notes.append(f"{kind} mask {fitting[0]} taken of {len(fitting)}")
    return Scan(
        id=match["entities"],
        subject=f"sub-{entities['sub']}",
        session=entities.get("ses", ""),
        modality=match["what"],
        scanner=scanners.get(name, ""),
        image=files.join(root, name),
        brain=place["brain"],
        lesion=place["lesion"],
        notes="; ".join(notes),
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
    found: dict[tuple[str, str], list[str]] = {}
    for name in masks:
        entities = _entities(stem(name))
        session = (entities.get("sub", ""), entities.get("ses", ""))
        found.setdefault(session, []).append(name)
    return found


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
        if not any(part.lower().endswith(words) for part in parts):
            continue
        own = {"", scan.get("space", ""), *OWN_SPACES, modality}
        space_fits = mask.get("space", "") in ({scan["space"]} if "space" in scan else own)
        telling = {key: value for key, value in mask.items() if key not in _DESCRIBING}
        if space_fits and telling.items() <= scan.items():
            shared[name] = len(telling)
    most = max(shared.values(), default=0)
    return sorted(name for name, count in shared.items() if count == most)


def _scanners(root: str, names: Sequence[str], scans: Sequence[str]) -> dict[str, str]:
    """Scan -> scanner, empty where neither sidecars nor participants.tsv tell."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(".json"):
            by_folder.setdefault(_folder(name), []).append(name)
    sidecars = {scan: _sidecars(by_folder, scan) for scan in scans}
    fields = _read_all(root, {name for found in sidecars.values() for name in found})
    sites = _participants(root)
    scanners = {}
    for scan, found in sidecars.items():
        merged: dict[str, object] = {}
        for name in found:
            merged |= fields[name]
        subject = scan.split("/", 1)[0]
        scanners[scan] = _scanner(merged) or sites.get(subject, "")
    return scanners


def _sidecars(by_folder: Mapping[str, Sequence[str]], scan: str) -> list[str]:
    """JSON files that apply to a scan, from the most general to its own."""
    match = BIDS_RAW.search(scan)
    assert match is not None
    own = set(match["entities"].split("_"))
    parts = _folder(scan).split("/")
    found = []
    for depth in range(len(parts) + 1):
        fitting = []
        for name in by_folder.get("/".join(parts[:depth]), ()):
            *entities, suffix = name.rsplit("/", 1)[-1].removesuffix(".json").split("_")
            if suffix == match["what"] and set(entities) <= own:
                fitting.append((len(entities), name))
        found += [name for _, name in sorted(fitting)]
    return found


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _read_all(root: str, names: Iterable[str]) -> dict[str, dict[str, object]]:
    """The JSON objects in files, fetched together: a store answers slowly, but many at a time."""
    urls = {files.join(root, name): name for name in sorted(names)}
    if not urls:
        return {}
    fs, _ = fsspec.core.url_to_fs(root)
    paths = {fs._strip_protocol(url): name for url, name in urls.items()}
    contents = fs.cat(list(paths))
    fields = {}
    for path, name in paths.items():
        try:
            value = json.loads(contents[path])
        except ValueError as error:
            raise NoScanFoundError(
                f"{files.join(root, name)} is no JSON: {error}; mend or remove it"
            ) from None
        fields[name] = value if isinstance(value, dict) else {}
    return fields


def _scanner(fields: Mapping[str, object]) -> str:
    """`Siemens Prisma 3T`, of what the sidecar tells; else a station or an institution."""
    maker, model = (
        str(fields.get(key) or "").strip() for key in ("Manufacturer", "ManufacturersModelName")
    )
    if model.lower().startswith(maker.lower()):
        maker = ""
    name = " ".join(part for part in (maker, model) if part)
    try:
        tesla = f"{float(str(fields['MagneticFieldStrength'])):.2g}T"
    except (KeyError, ValueError):
        tesla = ""
    if name:
        return f"{name} {tesla}".strip()
    return str(fields.get("StationName") or fields.get("InstitutionName") or tesla)


def _participants(root: str) -> dict[str, str]:
    """Subject -> scanner or site, from participants.tsv where it has such a column."""
    url = files.join(root, "participants.tsv")
    if not files.exists(url):
        return {}
    try:
        table = pd.read_csv(io.BytesIO(files.read_bytes(url)), sep="\t", dtype=str)
    except (ValueError, pd.errors.ParserError) as error:
        raise NoScanFoundError(
            f"{url}: expected a table with tabs between its columns, but it cannot be read "
            f"({error}); mend or remove it"
        ) from None
    columns = {str(column).lower(): column for column in table.columns}
    column = next((columns[name] for name in _SITE_COLUMNS if name in columns), None)
    if column is None or "participant_id" not in table:
        return {}
    known = table[["participant_id", column]].dropna()
    subjects = known["participant_id"].map(lambda s: s if s.startswith("sub-") else f"sub-{s}")
    return dict(zip(subjects, known[column], strict=True))
