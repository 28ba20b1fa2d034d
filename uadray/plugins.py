"""What other packages add: found by their entry points, or named as `package.module:Name`.

Names are looked up without an import, so that a help text or a wrong argument costs none. What is
asked for is imported then; what cannot be is named with its package, and the rest goes on.
"""

import ast
import dataclasses
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from uadray.errors import PluginError, UadrayError, UadrayWarning

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Entry = TypeVar("Entry")


@cache
def entries(group: str) -> "dict[str, list[EntryPoint]]":
    """What is installed for a group of entry points, by name; nothing is imported."""
    from importlib import metadata  # slow to import, and not needed for what is our own

    found: dict[str, list[EntryPoint]] = {}
    for one in metadata.entry_points(group=group):
        found.setdefault(one.name, []).append(one)
    return found


def find(group: str, name: str) -> "EntryPoint | None":
    """The entry point of that name; None where there is none.

    Raises:
        PluginError: several packages have one.
    """
    several = entries(group).get(name, [])
    if len(several) > 1:
        them = " and ".join(sorted(map(describe, several)))
        raise PluginError(f"{name!r} is there more than once: {them}; uninstall all but one")
    return several[0] if several else None


def describe(entry: "EntryPoint") -> str:
    """Package, version and class, as in `uadray-example 0.1.0 (uadray_example:ExampleAE)`."""
    return f"{entry.dist.name} {entry.dist.version} ({entry.value})" if entry.dist else entry.value


def load(place: str, whose: str = "", *, here: bool = False) -> Any:
    """Import what `package.module:Name` says.

    Args:
        place: Module and name.
        whose: Who asks for it, in front of the error's message.
        here: Whether the module may lie in the present folder, as where a user has named it; what
            a file names is only looked for where Python looks.

    Raises:
        PluginError: there is no such module or name, or the module fails.
    """
    module, _, name = place.partition(":")
    whose = whose or place
    names = (*module.split("."), name)
    if module.endswith(".py") or not all(part.isidentifier() for part in names):
        meant = module.removesuffix(".py").rsplit("/", 1)[-1].strip(".").replace("-", "_")
        raise PluginError(
            f"{whose}: expected package.module:Name, as Python imports it, such as "
            f"{meant or 'my_module'}:{name.partition('-')[0] or 'Name'}"
        )
    if here and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise PluginError(
                f"{whose}: Python finds no module {error.name!r}: install its package, or set "
                "PYTHONPATH to the folder that holds it"
            ) from None
        why = str(error) if isinstance(error, UadrayError) else failure(error)
        raise PluginError(f"{whose} cannot be used: {why}") from error
    try:
        return getattr(found, name)
    except AttributeError:
        raise PluginError(f"{whose}: module {module} has no {name!r}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """What a class from outside of uadray is of."""

    distribution: str
    """As `pip` names it; empty for a file of none."""
    version: str
    """Of the distribution. A file of none has the digest of its source, so that results of changed
    code are not taken for those of the present one."""

    def __str__(self) -> str:
        if self.distribution:
            return f"{self.distribution} {self.version}"
        return f"a file of no package ({self.version})"

    def how_to_get(self, module: str) -> str:
        """The command, or what to do with the file of a module."""
        if self.distribution:
            return f"pip install {self.distribution}=={self.version}"
        return f"bring back the file of module {module}, with its folder in PYTHONPATH"


class Registry(MutableMapping[str, Entry]):
    """Entries of one kind by name: ours, then those that other packages offer by entry points.

    Names cost no import; an entry is imported when it is asked for. Where another package has one
    of the name of ours, ours is meant.

    Args:
        group: Of the entry points, such as `uadray.layouts`.
        what: What an entry is, in errors, such as `layout`.
        check: Refuses what is no such entry by a `PluginError`; it gets name and entry.
    """

    def __init__(
        self, group: str, what: str, check: Callable[[str, Any], None] = lambda name, entry: None
    ) -> None:
        self.group, self.what, self._check = group, what, check
        self.imported: dict[str, Entry] = {}
        """Ours, and those of other packages that were asked for."""
        self._origins: dict[str, tuple[Package, str]] = {}

    def __getitem__(self, name: str) -> Entry:
        """The entry, imported where need be.

        Raises:
            KeyError: there is none.
            PluginError: several packages have one, or the package's cannot be used.
        """
        if name in self.imported:
            self._check_rivals(name)
            return self.imported[name]
        if (found := find(self.group, name)) is None:
            raise KeyError(name)
        return self._import(name, found.value, describe(found), self.package(name))

    def at(self, place: str) -> Entry:
        """The entry at `package.module:name`, which may lie in the present folder; its name here.

        Raises:
            PluginError: there is none.
        """
        return self._import(place, place, place, None)

    def _import(self, name: str, place: str, whose: str, package: Package | None) -> Entry:
        one = load(place, whose, here=package is None)
        if name not in self.imported:  # its import may have added it
            package = package or package_of(place.partition(":")[0], self.group)
            try:
                self.add(name, one, package, place)
            except PluginError as error:
                raise PluginError(f"{whose} is no {self.what} named {name!r}: {error}") from None
        return self.imported[name]

    def _check_rivals(self, name: str) -> None:
        """Say that ours is meant, or refuse a name that several packages have."""
        own, place = self._origins.get(name, (None, ""))
        rivals = [
            one
            for one in entries(self.group).get(name, [])
            if not own or (one.dist and one.dist.name != own.distribution)
        ]
        them = " and ".join(sorted(map(describe, rivals)))
        if rivals and own is None:
            own_meant = f"uadray's own {name} is meant, not that of {them}"
            warnings.warn(own_meant, UadrayWarning, stacklevel=3)
        elif rivals:
            raise PluginError(
                f"{name!r} is there more than once: {them} and {place} of {own}; name one of them"
            )

    def add(self, name: str, entry: Entry, package: Package | None = None, place: str = "") -> None:
        """Add an entry: ours, or at its place in a package.

        Raises:
            PluginError: it is no such entry.
        """
        self._check(name, entry)
        self.imported[name] = entry
        if package is not None:
            self._origins[name] = package, place

    def package(self, name: str) -> Package | None:
        """What an entry is of, which is not imported for that; None for ours and for none.

        Raises:
            PluginError: several packages have one.
        """
        if name in self.imported:
            return self._origins.get(name, (None,))[0]
        found = find(self.group, name)
        dist = found and found.dist
        return Package(distribution=dist.name, version=dist.version) if dist else None

    def need(self, name: str) -> Entry:
        """The entry of a name that settings or a user give.

        Raises:
            PluginError: there is none here, or as `[]`.
        """
        if name in self:
            return self[name]
        raise PluginError(
            f"no {self.what} is named {name!r} here, there are {', '.join(self)}: install the "
            "package that has it, on all nodes"
        )

    def check_recorded(self, name: str, wanted: Package) -> None:
        """Refuse a name on record that is not installed here, or of another version.

        Raises:
            PluginError: it is so; the message says what to install.
        """
        check_package(f"{self.what} {name!r} is of", self.package(name), wanted, f"of {name!r}")

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.add(name, entry)

    def __delitem__(self, name: str) -> None:
        del self.imported[name]
        self._origins.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.imported, *entries(self.group)]))

    def __len__(self) -> int:
        return sum(1 for _ in self)  # a list would ask for its length

    def __contains__(self, name: object) -> bool:
        return name in self.imported or name in entries(self.group)

    def usable(self, failed: Callable[[str, PluginError], None]) -> dict[str, Entry]:
        """All entries that can be imported; `failed` takes name and error of each other one."""
        found: dict[str, Entry] = {}
        for name in self:
            try:
                found[name] = self[name]
            except PluginError as error:
                failed(name, error)
        return found


def failure(error: BaseException, place: str = "") -> str:
    """An error of somebody else's code, with the last line of theirs that led to it.

    Args:
        error: With its traceback.
        place: `package.module:Name` of that code.
    """
    text = f"{type(error).__name__}: {error}"
    if "non-frozen dataclass" in text:
        text += "; settings are @dataclass(frozen=True, kw_only=True)"
    file = getattr(sys.modules.get(place.partition(":")[0]), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [one for one in frames if one.filename == file] or frames
    if isinstance(error, SyntaxError) or theirs[-1].filename.startswith("<"):
        return text  # Python has said where
    return f"{text} ({theirs[-1].filename}, line {theirs[-1].lineno})"


def package_of(module: str, group: str) -> Package:
    """The package of a module outside of uadray, which is not imported for that.

    Raises:
        PluginError: Python does not find the module, or it has no source.
    """
    from importlib import metadata

    top = module.partition(".")[0]
    each = (one for several in entries(group).values() for one in several)
    installed = [(one.module, one.dist.name) for one in each if one.dist]
    # Several packages may share the top of a namespace.
    names = {package for place, package in installed if place == module}
    names = names or {package for place, package in installed if place.partition(".")[0] == top}
    names = names or set(metadata.packages_distributions().get(top, ()))
    if len(names) == 1:
        (name,) = names
        return Package(distribution=name, version=metadata.version(name))
    try:
        spec = find_spec(module)
        source = spec.loader.get_source(module) if spec else None  # type: ignore[union-attr]
    except (ImportError, ValueError, AttributeError):
        source = None
    if source is None:
        raise PluginError(f"Python finds no package and no source of module {module!r}")
    digest = sha256(source.encode()).hexdigest()[:16]
    return Package(distribution="", version=f"sha256:{digest}")


def check_package(what: str, here: Package | None, wanted: Package, module: str) -> None:
    """Refuse what a record names of another version, or what is not installed.

    Args:
        what: The beginning of a sentence, such as `MyAE is a method of`.
        here: What it is of here; None where it is not there.
        wanted: What it was of where the record was written.
        module: That it is in.

    Raises:
        PluginError: it is so; the message says what to install.
    """
    get = wanted.how_to_get(module)
    if here is None:
        raise PluginError(
            f"{what} {wanted}, which is not installed here, or not so that a record alone may "
            f"import it (an entry point, or a file in a folder of PYTHONPATH): {get}"
        )
    if here != wanted:
        raise PluginError(
            f"{what} {wanted}, here is {here}: {get}, or start again in another folder"
        )


def check_settings(settings: type[Any], owner: str) -> None:
    """Refuse a class of settings from outside that cannot be recorded or explained.

    Raises:
        PluginError: it is no frozen dataclass, or a field lacks a docstring or a default.
    """
    name = f"{owner}.{settings.__name__}"
    parameters = vars(settings).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{name} must be @dataclass(frozen=True, kw_only=True)")
    undocumented = {field for kind in settings.__mro__ for field in _undocumented(kind)}
    for field in dataclasses.fields(settings):
        if field.name in ("type", "package"):
            raise PluginError(f"{name}: records use {field.name!r}; name the field otherwise")
        if field.default is field.default_factory is dataclasses.MISSING:
            raise PluginError(f"{name}.{field.name} must have a default")
        if field.name in undocumented:
            raise PluginError(
                f"{name}.{field.name} must have a docstring below it, which help texts show: unit, "
                "range, source"
            )


def _undocumented(kind: type[Any]) -> Iterator[str]:
    """Fields that a class outside of uadray declares without a docstring below."""
    module = sys.modules.get(kind.__module__)
    if kind.__module__.partition(".")[0] in ("uadray", "builtins") or module is None:
        return
    try:
        body: list[ast.stmt] = ast.parse(inspect.getsource(module)).body
    except (OSError, TypeError):  # without its source nobody can look
        return
    for part in kind.__qualname__.split("."):
        inner = [one for one in body if isinstance(one, ast.ClassDef) and one.name == part]
        body = inner[-1].body if inner else []
    for one, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                yield one.target.id
