"""Where the control socket and the starter model are. Standard library only: `llmctl` has to start fast."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "control.sock"
STARTER_NAME = "smollm2-135m-instruct"
STARTER_REVISION = "b179c9523d0e"
"""The first digits of the file's SHA-256."""
STARTER_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def home(environ: Mapping[str, str]) -> Path:
    """The person's home folder; `/` where the machine knows none, as for a container's made-up user."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


def first_folder(value: str | None) -> Path | None:
    """The first of the folders that systemd may name in one variable, separated by colons."""
    return Path(value.split(":")[0]) if value and value.split(":")[0] else None


def data_dir(environ: Mapping[str, str]) -> Path:
    """The folder of models and of what has to survive a restart of the machine.

    $LLMVISOR_DATA_DIR, else $STATE_DIRECTORY (a systemd service), else $XDG_DATA_HOME/llmvisor, else
    ~/.local/share/llmvisor.
    """
    if explicit := environ.get("LLMVISOR_DATA_DIR"):
        return Path(explicit)
    if (state := first_folder(environ.get("STATE_DIRECTORY"))) is not None:
        return state
    if base := environ.get("XDG_DATA_HOME"):
        return Path(base) / "llmvisor"
    return home(environ) / ".local" / "share" / "llmvisor"


def starter_folder(environ: Mapping[str, str]) -> Path:
    """Where the starter model is installed, in the data folder: the folder of its one revision."""
    return data_dir(environ) / "models" / STARTER_NAME / STARTER_REVISION


def starter_model_path(environ: Mapping[str, str]) -> Path:
    """The model that is served where none is configured."""
    return starter_folder(environ) / STARTER_FILE


def default_socket_path(environ: Mapping[str, str], *, user_id: int | None = None) -> Path:
    """The control socket where configuration does not say.

    $RUNTIME_DIRECTORY/control.sock (a systemd service), else $XDG_RUNTIME_DIR/llmvisor/control.sock, else
    /run/llmvisor/control.sock for root, else run/control.sock in the data folder. Pure: creates nothing.
    """
    if (runtime := first_folder(environ.get("RUNTIME_DIRECTORY"))) is not None:
        return runtime / SOCKET_NAME
    if base := environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "llmvisor" / SOCKET_NAME
    if (os.getuid() if user_id is None else user_id) == 0:
        return Path("/run/llmvisor") / SOCKET_NAME
    return data_dir(environ) / "run" / SOCKET_NAME
