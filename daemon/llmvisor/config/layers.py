"""The layers of configuration, read from where they are and put on top of each other.

Built-in defaults, the configuration file, `.env`, the process environment, flags: a later one wins, key by key.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

import msgspec

from llmvisor import limits
from llmvisor.config import paths
from llmvisor.config.complete import complete
from llmvisor.config.dotenv import read_dotenv
from llmvisor.config.draft import Draft, Surroundings
from llmvisor.config.environment import Models, Variable, name_models, read_variables
from llmvisor.config.flags import read_flags
from llmvisor.config.key_files import KeyReader
from llmvisor.config.origins import DEFAULT, Origin, Path, values_of
from llmvisor.config.settings import Layer, Problem, Setting, in_order, read_file
from llmvisor.config.tree import TIERS, Config
from llmvisor.control.api import ConfigValue
from llmvisor.errors import ConfigError
from llmvisor.keys.file import has_keys
from llmvisor.keys.key import ApiKey
from llmvisor_runtimes.backend import ENTRY_POINT_GROUP

INSECURE_FLAG = "insecure_no_auth"


class LoadedConfig(msgspec.Struct, frozen=True):
    """A tree that can be used, and where it came from."""

    config: Config
    origins: dict[str, Origin]
    """By dotted path, for every value."""
    file: FilePath | None
    dotenv: FilePath | None
    warnings: list[str]
    """What is accepted, and better changed."""
    unused: list[str]
    """Environment variables that are known, and have no effect."""
    api_keys: list[ApiKey] = []
    """What `server.api_keys` names, hashed."""
    file_is_empty: bool = False
    """The file is there and sets nothing."""


def load_config(*, flags: Mapping[str, object], environ: Mapping[str, str], cwd: FilePath) -> LoadedConfig:
    """The configuration as it is now.

    `flags` holds `config` (the file), `insecure_no_auth`, those of `flags.FLAG_PATHS`, and dotted paths of anything
    else; None is a flag that was not given. Raises `ConfigError` with every problem of every layer at once.
    """
    named = flags.get("config") or environ.get("LLMVISOR_CONFIG")
    file = find_config_file(named=str(named) if named else None, environ=environ, cwd=cwd)
    text = None if file is None else _read_text(file, limits.config_file_bytes_max, cwd)
    return _load(text, file=file, flags=flags, environ=environ, cwd=cwd)


def check_text(
    text: str,
    name: str,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: FilePath = FilePath("/"),
    flags: Mapping[str, object] | None = None,
) -> list[str]:
    """What is wrong with a file's text, `name` being the file's in the messages. Empty = it can be used.

    Without an environment the text has to be right by itself; with the environment, the working directory and the
    flags of a start it is judged as that start would judge it.
    """
    if len(text.encode("utf-8", "replace")) > limits.config_file_bytes_max:
        return [f"{name}: larger than {limits.config_file_bytes_max} bytes"]
    try:
        _load(
            text,
            file=cwd / name,
            flags=flags or {},
            environ=environ or {"HOME": "/"},
            cwd=cwd,
            alone=environ is None,
        )
    except ConfigError as error:
        return error.problems
    return []


def config_values(loaded: LoadedConfig) -> Iterator[ConfigValue]:
    """Every effective value with who set it, secrets masked, in the tree's order."""
    return values_of(loaded.config, loaded.origins)


def find_config_file(*, named: str | None, environ: Mapping[str, str], cwd: FilePath) -> FilePath | None:
    """The file of the second layer: the one that is named, else the first that there is; None = there is none."""
    if named is not None:
        home = str(paths.home(environ))
        return cwd / (home + named[1:] if named.startswith("~/") else named)
    return next((path for path in paths.config_candidates(environ, cwd) if _is_there(path)), None)


def _is_there(path: FilePath) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # There, and not to be read: reading it says why.
        return True
    return True


def _is_writable_by_all(path: FilePath) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        # Gone since it was read, which a reload will notice.
        return False


def shown_name(path: FilePath, cwd: FilePath) -> str:
    """A file as it stands in messages: relative to the working directory where it is in there."""
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else str(path)


def _read_text(path: FilePath, bytes_max: int, cwd: FilePath) -> str:
    name = shown_name(path, cwd)
    try:
        data = _read_bounded(path, bytes_max)
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror or error}"]) from error
    except ValueError as error:
        raise ConfigError([f"{name}: {error}"]) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: not in UTF-8 (byte 0x{data[error.start]:02x})"]) from error


def _read_bounded(path: FilePath, bytes_max: int) -> bytes:
    # Opened without blocking, because a pipe of that name would hang the start.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"larger than {bytes_max} bytes")
    return data


def _load(
    text: str | None,
    *,
    file: FilePath | None,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    cwd: FilePath,
    alone: bool = False,
) -> LoadedConfig:
    problems: list[Problem] = []
    file_layer = Layer()
    if file is not None and text is not None:
        file_layer = read_file(text, name=shown_name(file, cwd), folder=str(file.parent))
    dotenv, dotenv_variables = (None, {}) if alone else _read_dotenv(file, cwd, problems)
    variables = _variables(environ, cwd)
    models = _name_all(file_layer, dotenv_variables | variables, flags)
    dotenv_layer, dotenv_unused = read_variables(dotenv_variables, models)
    environment_layer, unused = read_variables(variables, models)
    flag_layer = read_flags(flags, models, str(cwd))
    settings: dict[Path, Setting] = {}
    for layer in (
        _default_layer(models, file_layer, environ, cwd),
        file_layer,
        dotenv_layer,
        environment_layer,
        flag_layer,
    ):
        settings.update({setting.path: setting for setting in layer.settings})
        problems += layer.problems
    named = {name: file_layer.model_names.get(name) for name in models.tiers}
    broken = {problem.path for problem in problems}
    texts = None if alone else {each.name: each.value for each in (*dotenv_variables.values(), *variables.values())}
    draft = Draft(settings, named, _surroundings(flags, environ, cwd, texts), broken)
    config, origins = complete(draft)
    problems += draft.problems
    if problems:
        raise ConfigError(in_order(problems))
    warnings = [
        f"{shown_name(path, cwd)}: every person of this machine may write to it"
        for path in (file if text is not None and not alone else None, dotenv)
        if path is not None and _is_writable_by_all(path)
    ]
    return LoadedConfig(
        config,
        origins,
        file,
        dotenv,
        [*warnings, *draft.warnings],
        [*dotenv_unused, *unused],
        draft.api_keys,
        file_is_empty=file is not None and not file_layer.settings and not file_layer.model_names,
    )


def _surroundings(
    flags: Mapping[str, object], environ: Mapping[str, str], cwd: FilePath, texts: Mapping[str, str] | None
) -> Surroundings:
    """`texts` are the variables of all layers; None where the text of a file is judged by itself."""
    return Surroundings(
        home=str(paths.home(environ)),
        output_folder=str(paths.output_dir(environ, cwd)),
        data_folder=str(cwd / paths.data_dir(environ)),
        socket=str(cwd / paths.default_socket_path(environ)),
        is_folder=os.path.isdir,
        folder_backend=_folder_backend,
        has_backend=_has_backend,
        public_allowed=bool(flags.get(INSECURE_FLAG)),
        key_text=None if texts is None else KeyReader(texts, str(paths.home(environ))),
        keys_made=bool if texts is None else has_keys,
    )


def _folder_backend(path: str) -> str | None:
    from llmvisor.models.folders import backend_of  # noqa: PLC0415 - for those who have folders

    return backend_of(FilePath(path))


def _has_backend(name: str) -> bool:
    from importlib.metadata import entry_points  # noqa: PLC0415 - a third of this module's import time

    return any(True for _ in entry_points(group=ENTRY_POINT_GROUP, name=name))


def _name_all(file_layer: Layer, variables: Mapping[str, Variable], flags: Mapping[str, object]) -> Models:
    """Every model that any layer names; the starter where none does."""
    tiers: dict[str, str | None] = {name: name if name in TIERS else None for name in file_layer.model_names}
    for setting in file_layer.settings:
        if setting.path[0] == "models" and setting.path[2:] == ("tier",):
            tiers[setting.path[1]] = str(setting.value)
    models = Models(tiers)
    name_models(models, variables.values())
    for flag, value in flags.items():
        parts = flag.split(".")
        if value is not None and parts[0] == "models" and parts[-1] in ("path", "backend"):
            tiers.setdefault(".".join(parts[1:-1]), None)
    if not tiers:
        tiers[paths.STARTER_NAME] = "light"
    return models


def _default_layer(models: Models, file_layer: Layer, environ: Mapping[str, str], cwd: FilePath) -> Layer:
    """The starter model's own settings, where it is the one that is served."""
    if list(models.tiers) != [paths.STARTER_NAME] or file_layer.model_names:
        return Layer()
    values: dict[str, object] = {"path": str(cwd / paths.starter_model_path(environ)), "tier": "light"}
    at = ("models", paths.STARTER_NAME)
    return Layer([Setting((*at, key), value, DEFAULT, "/") for key, value in values.items()])


def _variables(environ: Mapping[str, str], cwd: FilePath) -> dict[str, Variable]:
    return {
        name: Variable(name, value, Origin("environment", name), str(cwd))
        for name, value in environ.items()
        if value.strip()
    }


def _read_dotenv(
    file: FilePath | None, cwd: FilePath, problems: list[Problem]
) -> tuple[FilePath | None, dict[str, Variable]]:
    """The `.env` file beside the configuration file, else in the working directory."""
    folders = [cwd] if file is None else [file.parent, cwd]
    path = next((folder / ".env" for folder in folders if _is_there(folder / ".env")), None)
    if path is None:
        return None, {}
    name = shown_name(path, cwd)
    try:
        lines, wrong = read_dotenv(_read_text(path, limits.dotenv_file_bytes_max, cwd))
    except ConfigError as error:
        problems += [Problem(Origin("dotenv", name), problem.removeprefix(f"{name}: ")) for problem in error.problems]
        return path, {}
    problems += [Problem(Origin("dotenv", f"{name}:{line}", line), reason) for line, reason in wrong]
    return path, {
        each.name: Variable(
            each.name, each.value, Origin("dotenv", f"{name}:{each.line} {each.name}", each.line), str(path.parent)
        )
        for each in lines
        if each.value.strip()
    }
