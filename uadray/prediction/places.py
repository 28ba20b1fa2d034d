"""Where each scan's results go in a folder that other calls have written into before.

Results of one scan never take the place of another's: names are compared as `naming.name_key` has
them, and sources by path and content.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from uadray import files
from uadray.errors import PredictError
from uadray.naming import name_key
from uadray.prediction.inputs import Item, names_for
from uadray.prediction.outputs import unwritable
from uadray.preparation.identity import digest_of, same_place


def placed(out: str, items: Sequence[Item]) -> list[Item]:
    """The items, each with a place of its own beside what other calls have left in the folder.

    A plain file keeps the place where an earlier call has left its results, whatever else is in
    this one. Where its name is taken by another one's results, it gets those of its folders before
    it, as do two of one name in one call.

    Args:
        out: The output folder.
        items: From `find_items`.

    Raises:
        PredictError: the place of a BIDS name is taken by another scan, or some cannot be read.
    """
    there = {name_key(name): name for name in files.list_names(out)}
    with ThreadPoolExecutor(16) as pool:
        own = list(pool.map(lambda item: _own_place(out, item, there), items))
        holders = list(pool.map(lambda item: _holder(out, item, there), items))
    kept = {name_key(item.folder) for item in own if item is not None}
    taken = kept | {name_key(item.folder) for item in items}
    places = []
    for item, place, holder in zip(items, own, holders, strict=True):
        if place is not None:
            places.append(place)
            continue
        if _is_free_for(item, holder) and (item.bids or name_key(item.folder) not in kept):
            places.append(_respelled(item, there))
            continue
        if item.bids:
            raise PredictError(
                f"{out} holds the results of {_source(holder)} as {item.summary}, where those of "
                f"{item.scan.image} would go: choose another --out for one of the two"
            )
        places.append(_elsewhere(out, item, there, taken))
    return places


def _own_place(out: str, item: Item, there: Mapping[str, str]) -> Item | None:
    """A plain file's item where an earlier call has left its results; None where none has."""
    for name in dict.fromkeys((item.folder, *names_for(item.scan))) if not item.bids else ():
        if name_key(name) not in there:
            continue
        place = _respelled(replace(item, name=name, folder=name), there)
        holder = _holder(out, place, there)
        if holder is not None and same_place(holder.get("source"), item.scan.image):
            return place
    return None


def _elsewhere(out: str, item: Item, there: Mapping[str, str], taken: set[str]) -> Item:
    """The item under the first longer name that is free for it; adds it to those taken."""
    for name in names_for(item.scan):
        other = replace(item, name=name, folder=name)
        if name_key(name) not in taken and _is_free_for(other, _holder(out, other, there)):
            taken.add(name_key(name))
            return _respelled(other, there)
    raise PredictError(
        f"{out} holds the results of another scan under each name that {item.scan.image} could "
        "have: choose another --out"
    )


def _respelled(item: Item, there: Mapping[str, str]) -> Item:
    """The item with its folder as it is spelled there: a name may be composed in several ways."""
    folder = there.get(name_key(item.folder), item.folder)
    return item if item.bids else replace(item, name=folder, folder=folder)


def _holder(out: str, item: Item, there: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The summary at an item's place: None where there is none, empty where it is damaged."""
    try:
        summary = files.read_json(files.join(out, _respelled(item, there).summary))
        return summary if isinstance(summary, dict) else {}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    except OSError as error:
        raise unwritable(out, error) from None


def _source(summary: Mapping[str, Any] | None) -> str:
    return str((summary or {}).get("source") or "a scan that its damaged summary does not name")


def _is_free_for(item: Item, holder: Mapping[str, Any] | None) -> bool:
    """Whether results may go where those of `holder` are: there are none, or they are its own."""
    if holder is None or same_place(holder.get("source"), item.scan.image):
        return True
    # The files have been moved: the same content, and nothing left where it was.
    digest, source = holder.get("source_digest"), holder.get("source")
    return (
        bool(digest)
        and isinstance(source, str)
        and not files.exists(source)
        and digest == digest_of(item.scan)
    )
