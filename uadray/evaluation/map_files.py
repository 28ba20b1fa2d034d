"""Which file of a folder or table is the map of which scan of a cohort."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from uadray import files
from uadray.errors import NoScanFoundError
from uadray.naming import name_key
from uadray.preparation.layouts.listing import IMAGE_ENDINGS, LeftOut, find_files
from uadray.preparation.layouts.scans import stem
from uadray.preparation.layouts.tables import TableError, read_table
from uadray.results import are_predictions

TABLES = (".csv", ".tsv")
"""How a table of maps ends."""

_PREDICTED = r"(^|/)anomaly\.nii\.gz$|_desc-anomaly_probseg\.nii\.gz$"
"""The maps among what `jobs/predict.py` writes."""

_NUMBER = re.compile(r"(?<![^\W_])\d+(?![^\W_])")
"""One that stands alone, as the 3 of `run-3` and not that of `T3w`."""

_SESSION = re.compile(r"_ses-[0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """What was found."""

    by_id: Mapping[str, tuple[str, ...]]
    """Paths or URLs of the maps of each scan; of several none is taken."""
    left_out: tuple[LeftOut, ...]
    """Files that are no map of a scan of the cohort, with reasons."""


def find_maps(where: str, ids: Sequence[str], pattern: str = "") -> MapFiles:
    """Find the maps of a cohort's scans.

    A file is the map of the scan whose id stands in its name, or else in the nearest of its folders
    that hold one, between characters that are neither letters nor digits; an id within a longer one
    does not count, and a name with two ids at different places is of neither. An id of digits alone
    has to be the only number there. Upper and lower case, and letters composed in several ways, are
    the same. An id without a session stands for one with it where the cohort has one session of
    that person.

    Args:
        where: A folder, or a table with the columns `id` and `path`.
        ids: Of the cohort.
        pattern: See `MapsConfig`.

    Raises:
        NoScanFoundError: there is no such folder or table, it holds no image, or none is named as
            a scan of the cohort.
    """
    where = files.normalise(where)
    if where.lower().endswith(TABLES):
        return _in_table(where, ids)
    listed = _listing(where, pattern)
    names, left_out = listed
    if not names:
        more = f" that fits {pattern!r}" if pattern else ""
        others = "".join(f"; {one.path} is {one.reason}" for one in left_out[:3])
        raise NoScanFoundError(
            f"{where}: no file there ends in {', '.join(IMAGE_ENDINGS)}{more}{others}; give the "
            "folder of the maps, or a table with the columns id and path"
        )
    by_id: dict[str, list[str]] = defaultdict(list)
    owners = _Owners(ids)
    for name in names:
        found = owners.of(name)
        if len(found) == 1:
            by_id[found[0]].append(files.join(where, name))
        else:
            reason = "of no scan of the cohort by its name"
            if found:
                reason = f"of {' or '.join(found)} by its name; name the maps in a table"
            left_out.append(LeftOut(path=files.join(where, name), reason=reason))
    if not by_id:
        raise NoScanFoundError(
            f"{where}: none of {len(names)} images, such as {names[0]}, is named as a scan of the "
            f"cohort, such as {ids[0]}: name each scan's map in a table with the columns id and "
            "path, and give that as --maps"
        )
    return MapFiles(by_id={k: tuple(v) for k, v in by_id.items()}, left_out=tuple(left_out))


def _listing(where: str, pattern: str) -> tuple[list[str], list[LeftOut]]:
    """Paths of the maps relative to the folder, and what else is there."""
    if are_predictions(where):
        # Which no other listing takes for scans; here its maps are what is asked for.
        fs, path = files.located(where)
        prefix = path.rstrip("/") + "/"
        everything = sorted(name.removeprefix(prefix) for name in fs.find(path))
        names = [name for name in everything if re.search(_PREDICTED, name)]
        left_out = list[LeftOut]()
    else:
        listing = find_files(where)
        names, left_out = list(listing), list(listing.left_out)
    if not pattern:
        return names, left_out
    taken = []
    for name in names:
        if fnmatch(name if "/" in pattern else name.rsplit("/", 1)[-1], pattern):
            taken.append(name)
        else:
            reason = f"not named as {pattern}"
            left_out.append(LeftOut(path=files.join(where, name), reason=reason))
    return taken, left_out


class _Owners:
    """Tells whose a file is by its path."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = {one: _pattern(one) for one in ids}
        bare: dict[str, list[str]] = defaultdict(list)
        for one in self._ids:
            if _SESSION.search(one):
                bare[_SESSION.sub("", one)].append(one)
        # A person of several sessions has several scans, and a name without one is of none.
        self._bare = {
            whole[0]: _pattern(short)
            for short, whole in bare.items()
            if len(whole) == 1 and short not in self._ids
        }

    def of(self, name: str) -> list[str]:
        """Ids that a path may mean: one where it is clear."""
        *folders, last = name.split("/")
        parts = [stem(last), *reversed(folders)]
        # `sub-01/ses-1/anomaly.nii.gz` means what `sub-01_ses-1` does.
        whole = "_".join([*folders, stem(last)])
        found = next((found for part in parts if (found := _named(self._ids, part))), [])
        longer = [one for one in _named(self._ids, whole) if one not in found]
        if len(longer) == 1 and all(longer[0].startswith(f"{one}_") for one in found):
            return longer
        if found or "ses-" in name:
            return found
        return next((found for part in parts if (found := _named(self._bare, part))), [])


def _pattern(name: str) -> re.Pattern[str]:
    letter = r"[^\W_]"
    return re.compile(f"(?<!{letter}){re.escape(name_key(name))}(?!{letter})")


def _named(patterns: Mapping[str, re.Pattern[str]], part: str) -> list[str]:
    """What a name may mean: the ids in it; where that is a number, its other numbers too."""
    text = name_key(part)
    spans = {
        one: [match.span() for match in pattern.finditer(text)] for one, pattern in patterns.items()
    }
    everywhere = [span for found in spans.values() for span in found]
    found = [one for one, at in spans.items() if any(not _is_within(s, everywhere) for s in at)]
    if len(found) == 1 and found[0].isdecimal():
        found += [n for n in dict.fromkeys(_NUMBER.findall(text)) if n not in found]
    return found


def _is_within(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    """Whether a longer one covers it."""
    return any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in others)


def _in_table(where: str, ids: Sequence[str]) -> MapFiles:
    try:
        columns, rows = read_table(where, "\t;,")
    except FileNotFoundError:
        raise NoScanFoundError(f"{where}: no such table") from None
    except (OSError, TableError) as error:
        raise NoScanFoundError(
            f"{where}: expected a table in UTF-8 with the columns id and path, but it cannot be "
            f"read ({error}); save it again as CSV"
        ) from None
    if not {"id", "path"} <= set(columns):
        raise NoScanFoundError(
            f"{where}: expected the columns id and path, but it has {', '.join(columns)}"
        )
    folder = where.rsplit("/", 1)[0]
    known = {name_key(one): one for one in ids}
    by_id: dict[str, list[str]] = defaultdict(list)
    left_out = []
    for row in rows:
        path = row["path"]
        absolute = path.startswith("/") or "://" in path
        place = path if absolute else files.join(folder, path)
        if not path:
            left_out.append(LeftOut(path=f"{where}: {row['id']}", reason="without a path"))
        elif (owner := known.get(name_key(row["id"]))) is None:
            reason = f"of {row['id'] or 'nobody'}, which is no id of the cohort"
            left_out.append(LeftOut(path=place, reason=reason))
        elif place not in by_id[owner]:
            by_id[owner].append(place)
    if not any(by_id.values()):
        raise NoScanFoundError(
            f"{where}: none of its {len(rows)} rows has the id of a scan of the cohort, such as "
            f"{ids[0]}"
        )
    return MapFiles(by_id={k: tuple(v) for k, v in by_id.items()}, left_out=tuple(left_out))
