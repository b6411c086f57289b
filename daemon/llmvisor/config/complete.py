"""From the settings of all layers to a whole tree: defaults, paths, and what one value means for another. Pure."""

from __future__ import annotations

import ipaddress

import msgspec

from llmvisor import limits
from llmvisor.config.api_keys import complete_keys
from llmvisor.config.draft import Draft
from llmvisor.config.models import complete_models
from llmvisor.config.origins import DEFAULT, Origin, Path, dotted, leaves, shown
from llmvisor.config.tree import Config


def complete(draft: Draft) -> tuple[Config, dict[str, Origin]]:
    """The tree, and who set each value of it. Problems stand in the draft, and with any the tree is of no use."""
    defaults = Config()
    draft.make_absolute(("server", "port_file"), defaults.server.port_file)
    draft.make_absolute(("logging", "main", "file"), defaults.logging.main.file)
    draft.make_absolute(("cache", "dir"), defaults.cache.dir)
    draft.make_absolute(("cache", "state_dir"), defaults.cache.state_dir)
    if draft.value(("storage", "dir")) is None:
        draft.put(("storage", "dir"), draft.around.data_folder, DEFAULT)
    draft.make_absolute(("storage", "dir"))
    complete_keys(draft)
    _complete_host(draft)
    _complete_socket(draft)
    for path in list(draft.settings):
        if path[0] == "backends" and "/" in (draft.text(path) or ""):
            draft.make_absolute(path)
        value = draft.value(path)
        if value and shown(path, value) is not value and draft.origin(path).layer == "file":
            draft.warn(path, "a secret in plain text; an environment variable keeps it out of the file")
    complete_models(draft)
    if draft.problems:
        return defaults, {}
    config = msgspec.convert(_nested(draft), Config)
    origins = {dotted(path): draft.origin(path) for path, _ in leaves(config)}
    return config, origins


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%", maxsplit=1)[0]).is_loopback
    except ValueError:
        return False


def _complete_host(draft: Draft) -> None:
    path = ("server", "host")
    host = draft.text(path)
    if host is None or is_loopback(host):
        return
    if draft.value(("server", "api_keys")) or draft.around.keys_made(draft.text(("storage", "dir")) or ""):
        return
    open_to = f"{host} is open to other machines, and no API key is asked for"
    if draft.around.public_allowed:
        draft.warn(path, open_to)
    else:
        draft.wrong(
            path,
            f"{open_to}; take 127.0.0.1, name a key in server.api_keys, make one with `llmctl keys add`, or say "
            "--insecure-no-auth where the network itself is trusted",
        )


def _complete_socket(draft: Draft) -> None:
    path = ("control", "socket")
    if draft.value(path) is None:
        draft.put(path, draft.around.socket, DEFAULT)
    else:
        draft.make_absolute(path)
    socket = draft.text(path) or ""
    length = len(socket.encode())
    if length > limits.socket_path_bytes_max:
        draft.wrong(
            path,
            f"{socket} has {length} bytes, allowed: a path of up to {limits.socket_path_bytes_max} bytes",
        )
    mode = draft.text(("control", "mode"))
    if mode is not None and int(mode, 8) & 0o006:
        draft.warn(("control", "mode"), f"{mode} lets every person of this machine manage the daemon")


def _nested(draft: Draft) -> dict[str, object]:
    """The settings as builtin values in the tree's shape; a model without any setting is there, too."""
    root: dict[str, object] = {}
    sections: dict[Path, dict[str, object]] = {(): root}

    def section(path: Path) -> dict[str, object]:
        if path not in sections:
            sections[path] = section(path[:-1]).setdefault(path[-1], {})  # pyright: ignore[reportArgumentType]
        return sections[path]

    for name in draft.models:
        section(("models", name))
    for path, setting in draft.settings.items():
        section(path[:-1])[path[-1]] = setting.value
    return root
