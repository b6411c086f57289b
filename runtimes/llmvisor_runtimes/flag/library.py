"""Brings torch, transformers and FlagEmbedding into the process: offline, and with one OpenMP runtime."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

from llmvisor_runtimes.backend import LoadError, LoadProgressCallback

INSTALL = "pip install 'llmvisor[flag]'"

_LIBRARIES = ("torch", "transformers", "transformers.modeling_utils", "FlagEmbedding")

_KEPT_OUT = ("sentencepiece", "sklearn", "mlx")
"""transformers imports these where they are installed, though nothing here needs them. The first two bring an OpenMP
runtime of their own beside torch's, the third another engine."""

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
"""Models come from local folders alone; threads are handed out by the daemon; a log holds no progress bars."""


_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""torch's threads sleep when they wait for each other. Spinning, they keep the cores from whoever they wait for: with
two other processes at work a short text took 0.2 to 0.9 s where it takes 0.02. Read once, when torch is imported."""


def import_library(progress: LoadProgressCallback | None = None) -> None:
    """Import what loading needs; it takes seconds. Raises `LoadError` (permanent) where something is missing."""
    os.environ.update(_ENVIRONMENT)
    for name, value in _THREADS.items():
        os.environ.setdefault(name, value)
    for name in _KEPT_OUT:
        # None makes an import fail as if it were not installed.
        sys.modules.setdefault(name, None)  # pyright: ignore[reportArgumentType] - None is documented for this
    # What these libraries tell of each other's future is nothing to who reads the log.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for done, name in enumerate(_LIBRARIES):
                if progress is not None:
                    progress("library", done, len(_LIBRARIES), "steps")
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LoadError(f"{error.name} is not installed: {INSTALL}", permanent=True) from error
    except (ImportError, OSError) as error:
        raise LoadError(f"FlagEmbedding cannot be imported: {error}; {INSTALL}", permanent=True) from error
