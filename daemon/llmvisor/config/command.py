"""`llmvisor config show | check | path | init`: the configuration without a daemon."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from llmvisor.config.layers import INSECURE_FLAG, LoadedConfig, config_values, find_config_file, load_config
from llmvisor.config.paths import user_config_path
from llmvisor.errors import ConfigError

__all__ = ["config_values", "example_text", "run"]

EXAMPLE_NAME = "config.example.yaml"
EXIT_OK = 0
EXIT_FAILED = 1


def example_text() -> str:
    """The commented example that `init` writes."""
    return files("llmvisor.config").joinpath(EXAMPLE_NAME).read_text(encoding="utf-8")


def run(argv: Sequence[str]) -> int:
    """Do what the words after `llmvisor config` say; gives the exit code."""
    arguments = _parser().parse_args(argv)
    environ, cwd = os.environ, Path.cwd()
    try:
        if arguments.action == "init":
            return _init(arguments.file, environ, cwd)
        if arguments.action == "path":
            return _path(arguments.config, environ, cwd)
        file = arguments.file if arguments.action == "check" else arguments.config
        flags = {"config": file, INSECURE_FLAG: arguments.insecure_no_auth}
        loaded = load_config(flags=flags, environ=environ, cwd=cwd)
    except ConfigError as error:
        _say(error.problems)
        return EXIT_FAILED
    if arguments.action == "show":
        return _show(loaded, origin=arguments.origin, as_json=arguments.json)
    return _checked(loaded)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmvisor config", description="The configuration, without a daemon.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print every value")
    show.add_argument("--origin", action="store_true", help="and who set it: layer, file and line")
    show.add_argument("--json", action="store_true", help="as JSON, one object for each value")
    check = actions.add_parser("check", help="say everything that is wrong; exits 1 then")
    check.add_argument("file", nargs="?", metavar="FILE", help="the file (default: the one that a start would take)")
    path = actions.add_parser("path", help="print which file a start would take; exits 1 without one")
    init = actions.add_parser("init", help="write a commented example; never over a file")
    init.add_argument("file", nargs="?", metavar="FILE", help="where (default: ~/.config/llmvisor/config.yaml)")
    for action in (show, check):
        action.add_argument("--insecure-no-auth", action="store_true", help="take a public address as a start would")
    for action in (show, path):
        action.add_argument("--config", metavar="FILE", help="the configuration file")
    return parser


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _show(loaded: LoadedConfig, *, origin: bool, as_json: bool) -> int:
    values = list(config_values(loaded))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(values), indent=2).decode())
        return EXIT_OK
    lines = [(f"{value.path}: {bytes(value.value).decode()}", value) for value in values]
    width = min(72, max(len(line) for line, _ in lines))
    for line, value in lines:
        where = value.layer if value.layer == value.origin else f"{value.layer} {value.origin}"
        print(f"{line:<{width}}  # {where}" if origin else line)
    if origin:
        for unused in loaded.unused:
            print(f"# {unused}")
    return EXIT_OK


def _checked(loaded: LoadedConfig) -> int:
    _say([f"warning: {warning}" for warning in loaded.warnings])
    print(f"{loaded.file}: correct" if loaded.file else "no configuration file: the built-in defaults are correct")
    return EXIT_OK


def _path(named: str | None, environ: Mapping[str, str], cwd: Path) -> int:
    file = find_config_file(named=named or environ.get("LLMVISOR_CONFIG"), environ=environ, cwd=cwd)
    if file is None:
        _say(["there is no configuration file, the built-in defaults hold; `llmvisor config init` writes one"])
        return EXIT_FAILED
    print(file)
    return EXIT_OK


def _init(named: str | None, environ: Mapping[str, str], cwd: Path) -> int:
    path = user_config_path(environ) if named is None else cwd / named
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # 0600: people put secrets into it, whatever is said about that.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(example_text())
    except FileExistsError:
        _say([f"{path} is there already; it is left as it is"])
        return EXIT_FAILED
    except OSError as error:
        _say([f"{path}: cannot be written: {error.strerror or error}"])
        return EXIT_FAILED
    print(path)
    return EXIT_OK
