"""Methods from outside that are there while a test runs."""

import importlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from uadray import plugins


@dataclass(frozen=True, kw_only=True)
class OwnRegistry:
    """A folder that Python looks into, and what it has registered is forgotten after the test."""

    folder: Path

    def write(self, name: str, text: str) -> None:
        """Write a module."""
        (self.folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    def module(self, name: str, text: str) -> ModuleType:
        """Write a module and import it."""
        self.write(name, text)
        return importlib.import_module(name)

    def install(
        self, package: str, version: str, *, group: str = "methods", **entries: str
    ) -> None:
        """What `pip` leaves of a package with entry points: their names, and what they lead to."""
        info = self.folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[uadray.{group}]\n{lines}")
        plugins.entries.cache_clear()
        importlib.invalidate_caches()

    def remove(self) -> None:
        """Remove all modules and packages."""
        for path in list(self.folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        plugins.entries.cache_clear()
        importlib.invalidate_caches()
