"""llama_cpp, the ctypes bindings, as this package uses them.

Their annotations name what ctypes converts from and not what it gives, so they are set aside in this one place; what is
read through them gets its type where it is read.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec, module_from_spec
from typing import Any

# Where ggml aborts it would start a debugger on this very process, and the worker be gone seconds later only.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")


def binding(name: str) -> Any:  # noqa: ANN401 - a module without types
    """A module of llama_cpp that declares functions of a library.

    Not what the package imports beside them, its own interface with templates, caches and servers' types: that takes
    three times as long as all the rest, in each worker anew. Raises ImportError.
    """
    spec = None if "llama_cpp" in sys.modules else find_spec("llama_cpp")
    if spec is None:
        return importlib.import_module(f"llama_cpp.{name}")
    sys.modules["llama_cpp"] = module_from_spec(spec)
    try:
        return importlib.import_module(f"llama_cpp.{name}")
    finally:
        del sys.modules["llama_cpp"]  # whoever imports the package itself gets it whole


llama_cpp = binding("llama_cpp")
