"""The settings of all layers, under way to a whole tree. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from llmvisor.config.origins import DEFAULT, Origin, Path, dotted
from llmvisor.config.settings import Problem, Setting
from llmvisor.keys.key import ApiKey


class KeyText(msgspec.Struct, frozen=True):
    """What an entry of `server.api_keys` holds."""

    text: str
    warning: str | None = None


class Surroundings(msgspec.Struct, frozen=True):
    """What the machine says, which configuration alone cannot."""

    home: str
    output_folder: str
    """Where relative paths of built-in defaults start."""
    data_folder: str
    """Where the store and installed models lie where configuration does not say."""
    socket: str
    """The control socket's default."""
    is_folder: Callable[[str], bool]
    folder_backend: Callable[[str], str | None]
    """The backend that a model's folder is for; None where it is no model's folder."""
    has_backend: Callable[[str], bool]
    """Whether a plug-in registers that backend."""
    public_allowed: bool
    """Whether a public address is bound without API keys."""
    key_text: Callable[[str, str], KeyText] | None = None
    """What an entry of `server.api_keys` holds, relative to a folder; None where the machine is not to be asked.

    Raises `ValueError`."""
    keys_made: Callable[[str], bool] = bool
    """Whether API keys were made in that storage folder."""


class Draft:
    """The settings under way to a tree, with what is wrong in them."""

    def __init__(
        self,
        settings: Mapping[Path, Setting],
        models: Mapping[str, Origin | None],
        around: Surroundings,
        broken: AbstractSet[Path] = frozenset(),
    ) -> None:
        self.settings = dict(settings)
        self.broken = broken
        """Keys that were set to what they do not take."""
        self.models = models
        """Names in order, and where the file names each, if it does."""
        self.around = around
        self.api_keys: list[ApiKey] = []
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def value(self, path: Path) -> object:
        setting = self.settings.get(path)
        return None if setting is None else setting.value

    def text(self, path: Path) -> str | None:
        value = self.value(path)
        return value if isinstance(value, str) else None

    def origin(self, path: Path) -> Origin:
        setting = self.settings.get(path)
        if setting is not None:
            return setting.origin
        if len(path) == 2 and path[0] == "models":
            of_model = (each.origin for each in self.settings.values() if each.path[:2] == path)
            return self.models.get(path[1]) or next(of_model, DEFAULT)
        return DEFAULT

    def put(self, path: Path, value: object, origin: Origin) -> None:
        self.settings[path] = Setting(path, value, origin, self.around.output_folder)

    def wrong(self, path: Path, text: str) -> None:
        self.problems.append(Problem(self.origin(path), f"{dotted(path)}: {text}"))

    def warn(self, path: Path, text: str) -> None:
        origin = self.origin(path)
        where = "" if origin.layer == "default" else f"{origin.where}: "
        self.warnings.append(f"{where}{dotted(path)}: {text}")

    def make_absolute(self, path: Path, default: str | None = None) -> None:
        """Resolve a path against the folder of the layer that set it; a default against the output folder."""
        setting = self.settings.get(path)
        if setting is None and default is not None:
            self.put(path, absolute(default, self.around.output_folder, self.around.home), DEFAULT)
        elif setting is not None and isinstance(setting.value, str):
            self.put(path, absolute(setting.value, setting.folder, self.around.home), setting.origin)


def absolute(text: str, folder: str, home: str) -> str:
    """A path with `~` and a relative beginning resolved; links are left alone."""
    if text == "~" or text.startswith("~/"):
        text = home + text[1:]
    return posixpath.normpath(posixpath.join(folder, text))
