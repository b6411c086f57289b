"""Where things are when configuration does not say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmvisor.config.paths import config_candidates, data_dir, starter_model_path
from llmvisor.control.paths import default_socket_path


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LLMVISOR_DATA_DIR": "/d", "STATE_DIRECTORY": "/s", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/d"),
        ({"STATE_DIRECTORY": "/s:/t", "XDG_DATA_HOME": "/x", "HOME": "/h"}, "/s"),
        ({"XDG_DATA_HOME": "/x", "HOME": "/h"}, "/x/llmvisor"),
        ({"HOME": "/h"}, "/h/.local/share/llmvisor"),
        ({"LLMVISOR_DATA_DIR": "", "XDG_DATA_HOME": "", "HOME": "/h"}, "/h/.local/share/llmvisor"),
    ],
)
def test_paths_data_folder(environ: dict[str, str], expected: str) -> None:
    """The explicit folder, a service's own, the desktop's standard, the home; an empty variable says nothing."""
    assert data_dir(environ) == Path(expected)
    folder = Path(expected) / "models" / "smollm2-135m-instruct" / "b179c9523d0e"
    assert starter_model_path(environ) == folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    ("environ", "user_id", "expected"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x", "HOME": "/h"}, 0, "/run/a/control.sock"),
        ({"XDG_RUNTIME_DIR": "/x", "HOME": "/h"}, 5, "/x/llmvisor/control.sock"),
        ({"HOME": "/h"}, 0, "/run/llmvisor/control.sock"),
        ({"HOME": "/h"}, 5, "/h/.local/share/llmvisor/run/control.sock"),
        ({"LLMVISOR_DATA_DIR": "/d", "HOME": "/h"}, 5, "/d/run/control.sock"),
    ],
)
def test_paths_control_socket(environ: dict[str, str], user_id: int, expected: str) -> None:
    """A service's folder, the session's, the system's for root, the data folder for the others."""
    assert default_socket_path(environ, user_id=user_id) == Path(expected)


def test_paths_configuration_file() -> None:
    """Working directory, the person's own, the system's."""
    assert config_candidates({"HOME": "/h"}, Path("/w")) == [
        Path("/w/config.yaml"),
        Path("/h/.config/llmvisor/config.yaml"),
        Path("/etc/llmvisor/config.yaml"),
    ]


def test_paths_of_the_socket_import_the_standard_library_alone() -> None:
    """`llmctl` finds the socket without paying for the daemon's libraries."""
    script = (
        "import sys; before = set(sys.modules); import llmvisor.control.paths;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["llmvisor"]
