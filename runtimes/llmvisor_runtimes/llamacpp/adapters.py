"""LoRA adapters: loaded with the model, and switched on the context between batches."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path

from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.llamacpp.native import llama_cpp
from llmvisor_runtimes.llamacpp.options import AdapterOptions
from llmvisor_runtimes.llamacpp.parked import AdapterSet
from llmvisor_runtimes.llamacpp.weights import Weights
from llmvisor_runtimes.protocol import AdapterScale


class Adapters:
    """The adapters of one model. llama.cpp frees them with it."""

    def __init__(self, weights: Weights, options: Mapping[str, AdapterOptions]) -> None:
        """Load them, before a context is made: its graphs are sized by them. Raises `LoadError`."""
        self._pointers = {name: _load(weights, name, own.path) for name, own in options.items()}
        self._own = _set_of({name: own.scale for name, own in options.items()})
        self._acting: AdapterSet = ()

    def __bool__(self) -> bool:
        return bool(self._pointers)

    def wanted(self, request: list[AdapterScale] | None) -> AdapterSet:
        """Those that act for a request, None standing for the options' own. Raises `RequestError`."""
        if request is None:
            return self._own
        scales: dict[str, float] = {}
        for adapter in request:
            if adapter.name not in self._pointers:
                known = ", ".join(self._pointers) or "none"
                raise RequestError(
                    "invalid_value", f"the model has no adapter {adapter.name!r}; there are: {known}", "adapters"
                )
            if adapter.name in scales:
                raise RequestError("invalid_value", f"the adapter {adapter.name!r} is named twice", "adapters")
            if not math.isfinite(adapter.scale):
                raise RequestError("invalid_value", "an adapter's scale has to be a finite number", "adapters")
            scales[adapter.name] = adapter.scale
        return _set_of(scales)

    def act(self, context: object, wanted: AdapterSet) -> None:
        """Have exactly these act on what a context computes from now on."""
        if wanted == self._acting:
            return
        count = len(wanted)
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * max(1, count))()
        scales = (ctypes.c_float * max(1, count))()
        for place, (name, scale) in enumerate(wanted):
            pointers[place], scales[place] = self._pointers[name], scale
        llama_cpp.llama_set_adapters_lora(context, pointers, count, scales)
        self._acting = wanted


def _set_of(scales: Mapping[str, float]) -> AdapterSet:
    return tuple(sorted((name, scale) for name, scale in scales.items() if scale))


def _load(weights: Weights, name: str, path: str) -> object:
    file = Path(path).expanduser()
    what = f"the adapter {name!r} ({path})"
    check_gguf(file, what)
    pointer = llama_cpp.llama_adapter_lora_init(weights.pointer, os.fsencode(file))
    if not pointer:
        raise weights.failure(f"{what} cannot be loaded")
    return pointer


def check_gguf(file: Path, what: str) -> None:
    """What can be told without llama.cpp, which says less about it. Raises `LoadError`."""
    if not file.is_file():
        raise LoadError(f"{what} is no file", permanent=True)
    with file.open("rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise LoadError(f"{what} is not a GGUF file: it begins with {magic!r}", permanent=True)
