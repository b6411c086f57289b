"""What a worker imports before it loads, since every load, swap and resumed stream waits for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

from llmvisor_runtimes.backend import ENTRY_POINT_GROUP
from llmvisor_runtimes.llamacpp import LlamaCppBackend
from llmvisor_runtimes.process import OWN_BACKENDS


def printed(code: str) -> list[str]:
    command = [sys.executable, "-P", "-c", f"import sys\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def test_own_backends_stand_where_they_are_registered() -> None:
    """The daemon knows them as registered, the worker from its table."""
    registered = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
    assert registered == OWN_BACKENDS


def test_worker_looks_through_what_is_installed_for_other_packages_backends_alone() -> None:
    """A plug-in's backend has to be looked for; llama.cpp's is there, with its version."""
    assert LlamaCppBackend().version() == version("llama-cpp-python")
    code = (
        "from llmvisor_runtimes.process import _find_backend as find\n"
        "find('llamacpp').version()\n"
        "print('importlib.metadata' in sys.modules, find('nobody'), 'importlib.metadata' in sys.modules)"
    )
    assert printed(code) == ["False", "None", "True"]


def test_bindings_come_without_the_packages_own_interface() -> None:
    """That takes three times as long as all the rest. Who imports the package itself gets it whole, with the same
    bindings, before and after."""
    code = (
        "from llmvisor_runtimes.llamacpp.native import binding, llama_cpp\n"
        "print('llama_cpp.llama' in sys.modules, 'numpy' in sys.modules)\n"
        "import llama_cpp as package\n"
        "print(hasattr(package, 'Llama'), package.llama_cpp is llama_cpp)\n"
        "print(binding('mtmd_cpp') is package.mtmd_cpp)"
    )
    assert printed(code) == ["False", "False", "True", "True", "True"]
