"""Where things are when configuration does not say: functions of the environment, which create nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmvisor.control.paths import (
    STARTER_NAME,
    data_dir,
    default_socket_path,
    first_folder,
    home,
    starter_folder,
    starter_model_path,
)

__all__ = [
    "CONFIG_NAME",
    "STARTER_NAME",
    "config_candidates",
    "data_dir",
    "default_socket_path",
    "home",
    "output_dir",
    "starter_folder",
    "starter_model_path",
    "user_config_path",
]

CONFIG_NAME = "config.yaml"


def output_dir(environ: Mapping[str, str], cwd: Path) -> Path:
    """The folder of `.port` and `logs/`: the working directory, a systemd service's own folder where it has one."""
    return first_folder(environ.get("STATE_DIRECTORY")) or cwd


def user_config_path(environ: Mapping[str, str]) -> Path:
    """The person's own configuration file."""
    base = Path(environ["XDG_CONFIG_HOME"]) if environ.get("XDG_CONFIG_HOME") else home(environ) / ".config"
    return base / "llmvisor" / CONFIG_NAME


def config_candidates(environ: Mapping[str, str], cwd: Path) -> list[Path]:
    """Where the configuration file is looked for, in this order, when neither flag nor $LLMVISOR_CONFIG names one."""
    return [cwd / CONFIG_NAME, user_config_path(environ), Path("/etc/llmvisor") / CONFIG_NAME]
