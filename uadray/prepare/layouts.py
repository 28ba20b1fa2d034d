"""Where data sets keep their files: each layout finds its scans and yields them as `Scan`s.

A layout only looks at names and small tables; whether a scan can be used is seen when it is read.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import fsspec
import pandas as pd

from uadray import files
from uadray.errors import NoScanFoundError

PHANTOM_SCHEME = "phantom://"
"""Scans behind it are made, not read: `phantom://stroke/17` is subject 17 of the kind stroke."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One series of one subject at one session, and the masks that come with it."""

    id: str
    """Unique in the data set, such as `sub-17` or `sub-17_ses-2`."""
    subject: str
    """The person: all scans of one share it."""
    image: str
    """Path or URL of the NIfTI file, or `phantom://KIND/SEED`."""
    modality: str
    """Such as T1w or FLAIR."""
    session: str = ""
    """Empty where there is only one."""
    scanner: str = ""
    """Scanner or site; empty where the set does not tell."""
    brain: str = ""
    """Path of the brain mask; empty for a scan without its skull."""
    lesion: str = ""
    """Path of the lesion mask; empty where there is none."""
    synthetic_lesion: str = ""
    """Path of the real lesion mask that a semi-synthetic stroke is made from; mostly empty."""

    @property
    def lesioned(self) -> bool:
        """Whether the scan has, or is to be given, a lesion of known place."""
        return bool(
            self.lesion
            or self.synthetic_lesion
            or (
                self.image.startswith(PHANTOM_SCHEME)
                and not self.image.startswith(PHANTOM_SCHEME + "healthy/")
            )
        )


Layout = Callable[[str, str], list[Scan]]
"""Finds the scans of one modality, sorted by id: layout(root, modality). It raises
NoScanFoundError where there is none, or where two share an id."""


def find_files(root: str, endings: tuple[str, ...] = (".nii", ".nii.gz")) -> list[str]:
    """Paths of all files under `root` with one of the endings, relative to it, sorted."""
    fs, path = fsspec.core.url_to_fs(root)
    if not fs.exists(path):
        raise NoScanFoundError(f"{root}: no such folder; give the folder of the data set")
    prefix = path.rstrip("/") + "/"
    return sorted(found.removeprefix(prefix) for found in fs.find(path) if found.endswith(endings))


def _stem(path: str) -> str:
    """The file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path.rsplit("/", 1)[-1])


def _sorted(scans: Iterable[Scan], where: str) -> list[Scan]:
    scans = sorted(scans, key=lambda scan: scan.id)
    twice = [name for name, count in Counter(scan.id for scan in scans).items() if count > 1]
    if twice:
        files_of = [scan.image for scan in scans if scan.id == twice[0]]
        raise NoScanFoundError(
            f"{where}: {len(twice)} ids belong to more than one scan, first {twice[0]}: "
            f"{', '.join(files_of)}; leave one of them out, or name the scans in a CSV with an id "
            "column"
        )
    return scans


def _nothing(where: str, looked_for: str, there: Iterable[str], what: str, advice: str) -> str:
    names = sorted(set(there))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"{where}: no scan found; looked for {looked_for}; {what}: {shown or 'none'}; {advice}"


_BIDS_NAME = re.compile(r"(?P<entities>sub-[^/]*)_(?P<suffix>[A-Za-z0-9]+)\.nii(\.gz)?$")
_SCANNER_KEYS = ("ManufacturersModelName", "StationName", "InstitutionName", "Manufacturer")


def _entities(name: str) -> dict[str, str]:
    """`sub-01_ses-2_run-1` as a dictionary."""
    pairs = (part.split("-", 1) for part in name.split("_") if "-" in part)
    return {key: value for key, value in pairs}


def bids(root: str, modality: str) -> list[Scan]:
    """Scans of a BIDS folder, `sub-*[/ses-*]/anat/*_MODALITY.nii[.gz]`.

    Masks are files anywhere in it, mostly under `derivatives/`, whose names hold the scan's
    entities, end in `_mask` or `_roi`, and have a part that ends in `brain` or `lesion`, such as
    `_desc-brain_mask`, `_label-lesion_roi` or `_lesion_mask`. The scanner comes from the sidecar,
    else from a column `scanner` or `site` of `participants.tsv`.

    Args:
        root: Folder or URL of the data set.
        modality: BIDS suffix, such as T1w or FLAIR.
    """
    root = files.normalise(root)
    names = find_files(root)
    raw = [n for n in names if re.match(r"sub-[^/]+/(ses-[^/]+/)?anat/", n)]
    masks = [n for n in names if re.search(r"_(mask|roi)\.nii(\.gz)?$", n)]
    sites = _participants(root)
    found, others = [], set()
    for name in raw:
        match = _BIDS_NAME.search(name.rsplit("/", 1)[-1])
        if match is None or name in masks:
            continue
        if match["suffix"] != modality:
            others.add(match["suffix"])
            continue
        entities = _entities(match["entities"])
        subject = f"sub-{entities['sub']}"
        found.append(
            Scan(
                id=match["entities"],
                subject=subject,
                session=entities.get("ses", ""),
                modality=modality,
                scanner=_sidecar_scanner(root, name) or sites.get(subject, ""),
                image=files.join(root, name),
                brain=_derived_mask(root, masks, match["entities"], "brain"),
                lesion=_derived_mask(root, masks, match["entities"], "lesion"),
            )
        )
    if not found:
        looked_for = f"sub-*[/ses-*]/anat/*_{modality}.nii[.gz]"
        advice = (
            "choose one of these with --modality" if others else "give the folder that holds sub-*/"
        )
        raise NoScanFoundError(
            _nothing(root, looked_for, others, "modalities in its anat folders", advice)
        )
    return _sorted(found, root)


def _derived_mask(root: str, masks: list[str], entities: str, kind: str) -> str:
    """The mask whose name holds all entities of the scan and the kind, or empty."""
    wanted = set(entities.split("_"))
    for name in masks:
        parts = _stem(name).split("_")
        if wanted <= set(parts) and any(p.lower().endswith(kind) for p in parts):
            return files.join(root, name)
    return ""


def _sidecar_scanner(root: str, name: str) -> str:
    sidecar = files.join(root, re.sub(r"\.nii(\.gz)?$", ".json", name))
    if not files.exists(sidecar):
        return ""
    try:
        fields = files.read_json(sidecar)
    except json.JSONDecodeError as error:
        raise NoScanFoundError(f"{sidecar} is no JSON: {error}; mend or remove it") from None
    return next((str(fields[key]) for key in _SCANNER_KEYS if fields.get(key)), "")


def _participants(root: str) -> dict[str, str]:
    """Subject -> scanner or site, from participants.tsv where it has such a column."""
    url = files.join(root, "participants.tsv")
    if not files.exists(url):
        return {}
    table = pd.read_csv(io.BytesIO(files.read_bytes(url)), sep="\t", dtype=str)
    column = next((c for c in table.columns if c.lower() in ("scanner", "site")), None)
    if column is None or "participant_id" not in table:
        return {}
    known = table.dropna(subset=[column])
    return dict(zip(known["participant_id"], known[column], strict=True))


def csv(manifest: str, modality: str) -> list[Scan]:
    """Scans named in a table, comma or tab separated, with one row for each.

    Args:
        manifest: Path of the table. Its column `image` is required; `id`, `subject`, `session`,
            `modality`, `scanner`, `brain` and `lesion` are optional. Relative paths are relative
            to the table. Without an id it is the file's name; without a subject it is the id.
        modality: Rows of another modality are left out; rows without one count as this.
    """
    manifest = files.normalise(manifest)
    if not files.exists(manifest):
        raise NoScanFoundError(f"{manifest}: no such file; give a CSV or TSV with a column image")
    folder = manifest.rsplit("/", 1)[0]
    separator = "\t" if manifest.endswith(".tsv") else ","
    text = files.read_bytes(manifest).decode("utf-8-sig")
    table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    if "image" not in table:
        raise NoScanFoundError(
            f"{manifest}: has no column image; it has {', '.join(map(str, table.columns))}"
        )
    known = {"id", "subject", "session", "modality", "scanner", "image", "brain", "lesion"}
    if unknown := set(table.columns) - known:
        raise NoScanFoundError(
            f"{manifest}: unknown columns {sorted(unknown)}; known are {sorted(known)}"
        )

    def place(path: str) -> str:
        absolute = not path or path.startswith("/") or "://" in path
        return path if absolute else files.join(folder, path)

    found, others = [], set()
    for row in table.to_dict("records"):
        if (row.get("modality") or modality) != modality:
            others.add(row["modality"])
            continue
        name = row.get("id") or _stem(row["image"])
        found.append(
            Scan(
                id=name,
                subject=row.get("subject") or name,
                session=row.get("session", ""),
                modality=modality,
                scanner=row.get("scanner", ""),
                image=place(row["image"]),
                brain=place(row.get("brain", "")),
                lesion=place(row.get("lesion", "")),
            )
        )
    if not found:
        advice = "choose one of these with --modality" if others else "the table has no row"
        raise NoScanFoundError(
            _nothing(manifest, f"rows of modality {modality}", others, "modalities there", advice)
        )
    return _sorted(found, manifest)


_MSLUB_NAME = re.compile(r"(?P<subject>patient\d+)/(?P=subject)_(?P<what>\w+)\.nii\.gz$")
_MSLUB_MASKS = ("brainmask", "consensus_gt")


def mslub(root: str, modality: str) -> list[Scan]:
    """Scans of the MSLUB set, `patientNN/patientNN_MODALITY.nii.gz` with both masks.

    Source: Lesjak et al. 2017, Neuroinformatics 16.

    Args:
        root: Folder or URL that holds patient01/, patient02/, ...
        modality: FLAIR, T1W, T1WKS or T2W, in any case.
    """
    root = files.normalise(root)
    paths = {
        (m["subject"], m["what"].lower()): files.join(root, n)
        for n in find_files(root)
        if (m := _MSLUB_NAME.search(n))
    }
    found = [
        Scan(
            id=subject,
            subject=subject,
            modality=modality,
            image=path,
            brain=paths.get((subject, "brainmask"), ""),
            lesion=paths.get((subject, "consensus_gt"), ""),
        )
        for (subject, what), path in paths.items()
        if what == modality.lower()
    ]
    if not found:
        others = {what for _, what in paths if what not in _MSLUB_MASKS}
        advice = (
            "choose one of these with --modality" if others else "give the folder of patientNN/"
        )
        looked_for = f"patientNN/patientNN_{modality}.nii.gz"
        raise NoScanFoundError(_nothing(root, looked_for, others, "modalities there", advice))
    return _sorted(found, root)


def phantom(kind: str, count: int, first_seed: int = 0) -> list[Scan]:
    """Invented subjects, `count` of them; the same kind and seed is always the same subject.

    Args:
        kind: healthy, tumour or stroke.
        count: How many.
        first_seed: Seed of the first; the others follow it.
    """
    return [
        Scan(
            id=f"{kind}-{seed:05d}",
            subject=f"{kind}-{seed:05d}",
            modality="T1w",
            image=f"{PHANTOM_SCHEME}{kind}/{seed}",
        )
        for seed in range(first_seed, first_seed + count)
    ]


LAYOUTS: dict[str, Layout] = {"bids": bids, "csv": csv, "mslub": mslub}
"""The layouts of files by name; `phantom` stands apart, since it has none."""
