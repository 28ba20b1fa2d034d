"""Which scans are to be predicted, what they are called, and where their results go."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from uadray import files
from uadray.errors import NoLesionMaskError, NoScanFoundError, PredictError, ScanError
from uadray.naming import file_name, name_key, path_names
from uadray.preparation.covariates import with_age, with_table
from uadray.preparation.layouts import LAYOUTS, LeftOut, Scan, Scans, detect
from uadray.preparation.layouts.listing import is_image, left_out_lines, printable
from uadray.preparation.layouts.naming import BIDS_RAW, mask_word
from uadray.preparation.layouts.scans import IMAGE_ENDINGS, canonical_modality, find_files, stem
from uadray.results import predictions_above

TABLES = (".csv", ".tsv")
"""How a table of scans ends."""

_CONTRASTS = ("T1w", "T1ce", "T2w", "FLAIR", "PDw")
_OTHERS = ("bold", "dwi", "dti", "adc", "swi", "ct", "asl", "pet", "mra", "t2star", "angio", "fmri")
_SPOKEN = frozenset(
    ("t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair", "pd", "pdw", "mprage")
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One scan and the place of its results."""

    scan: Scan
    """Its files."""
    name: str
    """Unique among the scans of a call."""
    folder: str
    """Of its results, relative to the output folder."""
    bids: str = ""
    """What BIDS names of its results begin with, such as `sub-01_ses-a`; empty for other scans."""

    @property
    def summary(self) -> str:
        """Its `summary.json`, relative to the output folder."""
        name = f"{self.bids}_desc-anomaly_summary.json" if self.bids else "summary.json"
        return f"{self.folder}/{name}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found in a call's inputs."""

    items: tuple[Item, ...]
    """The scans, by name."""
    left_out: tuple[LeftOut, ...]
    """Files of the folders and tables that are no scans by their names, each with the reason."""

    def lines(self) -> list[str]:
        """How many were found and left out, and which; for the terminal."""
        return left_out_lines(len(self.items), self.left_out)


def find_items(
    inputs: Sequence[str],
    modality: str,
    *,
    brain: str = "",
    ignore_names: bool = False,
    age: float | None = None,
    covariates: str = "",
) -> Found:
    """The scans in files, tables and folders.

    A folder in the layout of a known data set (BIDS among them) yields that set's scans of the
    modality with their brain masks; any other folder all its NIfTI files but those that are named
    as masks or other modalities.

    Args:
        inputs: NIfTI files, tables as the layout `csv` reads them, or folders; local paths or
            fsspec URLs.
        modality: Of the model's scans, such as T1w.
        brain: Brain mask of the one scan.
        ignore_names: Take files for the modality whatever their names say.
        age: In years, of the one scan's person.
        covariates: Table of what is known of people besides, such as their ages.

    Raises:
        NoScanFoundError: there is none, or a folder or the table of covariates cannot be read.
        PredictError: a brain mask or an age for several scans, or two results of one name.
    """
    scans: list[Scan] = []
    left_out: list[LeftOut] = []
    for given in inputs:
        url = files.normalise(given)
        if url.lower().endswith(TABLES):
            listed = LAYOUTS["csv"](url, modality.split(", ")[0])
        elif _is_file(url):
            # As when a shell spells out a pattern.
            if inside := predictions_above(url):
                left_out.append(LeftOut(path=url, reason=f"a result of uadray in {inside}"))
                continue
            listed = Scans([_single(url, modality)])
        else:
            listed = _in_folder(url, modality, ignore_names)
        scans += listed
        left_out += listed.left_out
    scans = _each_once(scans)
    taken = {scan.image for scan in scans}
    left_out = [one for one in dict.fromkeys(left_out) if one.path not in taken]
    if not scans:
        raise NoScanFoundError(
            f"no scan in {', '.join(inputs)}; give NIfTI files or a folder of them"
            + "".join(f"\n{line}" for line in left_out_lines(0, left_out) if left_out)
        )
    if brain:
        if len(scans) > 1:
            raise PredictError(
                f"--brain is the mask of one scan, but {len(scans)} were given: name scans and "
                "masks in a table with the columns image and brain"
            )
        scans = [_with_brain(scans[0], files.normalise(brain))]
    if covariates:
        scans = with_table(scans, covariates)
    if age is not None:
        if len(scans) > 1:
            raise PredictError(
                f"--age is of one person, but {len(scans)} scans were given: give a table of ages "
                "with --covariates"
            )
        scans = [with_age(scans[0], age)]
    return Found(items=tuple(_named(scans)), left_out=tuple(left_out))


def _each_once(scans: Iterable[Scan]) -> list[Scan]:
    """Each file once: as it was first described, unless another description has a brain mask."""
    known: dict[str, Scan] = {}
    for scan in scans:
        place = scan.image if files.is_remote(scan.image) else os.path.realpath(scan.image)
        if place not in known or (scan.brain and not known[place].brain):
            known[place] = scan
    return list(known.values())


def check_modality(scan: Scan, modality: str) -> None:
    """Refuse a scan whose file is named as another modality than the model's.

    Raises:
        ScanError: it is.
    """
    named = named_modalities(stem(scan.image))
    if named and not named & set(modality.split(", ")):
        raise ScanError(
            f"{scan.image}: is named as {' or '.join(sorted(named))}, but the model was fitted on "
            f"{modality}: give a scan of that modality, or, if the name misleads, pass "
            "--ignore-names"
        )


def named_modalities(name: str) -> set[str]:
    """The modalities that a file's name speaks of, in the package's words."""
    modalities = set()
    for word in re.split(r"[^A-Za-z0-9]+", name):
        one = canonical_modality(word)
        # PD is as often a disease as a contrast.
        if one in _CONTRASTS and word.lower() != "pd":
            modalities.add(one)
        elif word.lower() in _OTHERS:
            modalities.add(word.lower())
    return modalities


def _is_file(url: str) -> bool:
    """Whether it is a scan's file, there or not; otherwise it is a folder."""
    fs, path = files.located(url)
    # A folder may be called x.nii.gz; on an object store asking for each file would take long.
    if is_image(url) and (files.is_remote(url) or not fs.isdir(path)):
        return True
    if not fs.exists(path):
        raise NoScanFoundError(f"{url}: no such file or folder; look for it")
    if fs.isdir(path):
        return False
    raise NoScanFoundError(
        f"{url}: expected a NIfTI file ({', '.join(IMAGE_ENDINGS)}), a table or a folder"
    )


def _single(url: str, modality: str) -> Scan:
    place = _bids_place(url)
    name = place[0] if place else stem(url)
    return Scan(id=name, subject=name.split("_")[0], image=url, modality=modality)


def _bids_place(url: str) -> tuple[str, str] | None:
    """Entities and folder (`sub-01/ses-a/anat`) of a file in a BIDS tree."""
    for start in (match.end() for match in re.finditer(r"(?:^|/)(?=sub-)", url)):
        place = BIDS_RAW.search(url[start:])
        if place:
            return place["entities"], url[start:].rsplit("/", 1)[0]
    return None


def _in_folder(url: str, modality: str, ignore_names: bool) -> Scans:
    names = find_files(url)
    if not names:
        there = "".join(f"\n{line}" for line in left_out_lines(0, names.left_out, url)[1:])
        raise NoScanFoundError(f"{url}: no file there ends in {', '.join(IMAGE_ENDINGS)}{there}")
    try:
        layout = detect(url, LAYOUTS)
    except NoScanFoundError:
        layout = ""
    if layout and not ignore_names:
        try:
            listed = LAYOUTS[layout](url, modality.split(", ")[0])
        except NoLesionMaskError as error:
            listed = Scans([], error.left_out)
        # Patients whose lesions nobody has drawn are the ones to predict.
        bare = [one.scan for one in listed.left_out if one.scan is not None]
        return Scans([*listed, *bare], [one for one in listed.left_out if one.scan is None])
    kept: dict[tuple[str, str], str] = {}
    left_out = []
    for name in sorted(names, key=lambda name: (len(name), name)):
        folder, _, short = files.join(url, name).rpartition("/")
        # A folder that links lead to as well is listed by each of them.
        place = (folder if files.is_remote(url) else os.path.realpath(folder), short)
        reason = _why_no_scan(stem(name), modality, ignore_names)
        if not reason and place in kept:
            reason = "another link to a scan that is taken"
        if reason:
            left_out.append(LeftOut(path=files.join(url, name), reason=reason))
        else:
            kept[place] = name
    scans = [_single(files.join(url, name), modality) for name in sorted(kept.values())]
    return Scans(scans, [*left_out, *names.left_out])


def _why_no_scan(name: str, modality: str, ignore_names: bool) -> str:
    """Why a file of a plain folder is no scan of the modality by its name; empty where it is."""
    if word := mask_word(name, _SPOKEN):
        return f"named as a mask ({word})"
    named = set() if ignore_names else named_modalities(name)
    if named and not named & set(modality.split(", ")):
        return f"named as {' or '.join(sorted(named))}, not {modality}"
    return ""


def _with_brain(scan: Scan, brain: str) -> Scan:
    if not files.exists(brain):
        raise PredictError(f"{brain}: no such file; --brain is the brain mask of the scan")
    return replace(scan, brain=brain)


def _named(scans: Iterable[Scan]) -> list[Item]:
    """Items with names of their own; files of one name get those of their folders before it."""
    items: list[Item] = []
    plain: list[Scan] = []
    for scan in scans:
        place = _bids_place(scan.image)
        if place is None:
            plain.append(scan)
        else:
            entities, folder = map(printable, place)
            items.append(Item(scan=scan, name=entities, folder=folder, bids=entities))
    named = zip(plain, _unique(plain), strict=True)
    items += [Item(scan=scan, name=name, folder=name) for scan, name in named]
    return _kept_apart(items)


def _kept_apart(items: Sequence[Item]) -> list[Item]:
    """The items by name, of which there are no two.

    Raises:
        PredictError: two would leave their results in one file.
    """
    places: dict[str, Item] = {}
    for item in items:
        other = places.setdefault(name_key(item.summary), item)
        if other is not item:
            raise PredictError(
                f"the results of {item.scan.image} and {other.scan.image} would both be "
                f"{item.summary}: predict them into folders of their own"
            )
    counts = Counter(item.name for item in items)
    named = [
        replace(item, name=f"{item.name} ({item.folder})") if counts[item.name] > 1 else item
        for item in items
    ]
    return sorted(named, key=lambda item: item.name)


RESERVED = ("predict.json", "predictions.tsv", "quarantine.jsonl", "index.html")
"""What lies beside the results of scans in a folder of predictions."""


def names_for(scan: Scan) -> Iterator[str]:
    """Names that the results of a plain file may have, the one to prefer first."""
    ending = scan.image.rsplit("/", 1)[-1][len(stem(scan.image)) :]
    for name in (file_name(scan.id), *path_names(scan.image, ending)):
        if name not in RESERVED:
            yield name


def _unique(scans: Sequence[Scan]) -> list[str]:
    """The first name of each scan that no other one has."""
    offered = [list(names_for(scan)) for scan in scans]
    chosen = [0] * len(scans)
    for _ in range(max(map(len, offered), default=0)):
        keys = [name_key(names[k]) for names, k in zip(offered, chosen, strict=True)]
        counts = Counter(keys)
        for n, key in enumerate(keys):
            # The last one holds a digest of the path, of which there are no two.
            if counts[key] > 1 and chosen[n] < len(offered[n]) - 1:
                chosen[n] += 1
    return [names[k] for names, k in zip(offered, chosen, strict=True)]
