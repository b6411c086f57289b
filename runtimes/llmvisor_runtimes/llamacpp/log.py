"""llama.cpp's own log: to stderr, and kept while a model loads, for the reason of a failure and the memory it names."""

from __future__ import annotations

import re
import sys
from collections import deque
from typing import ClassVar

from llmvisor_runtimes.llamacpp.native import llama_cpp

_DEBUG, _INFO, _WARN, _ERROR, _CONT = 1, 2, 3, 4, 5  # of ggml.h; what llama_cpp._logger says is out of date
_LINES_KEPT = 2_000
_EXPECTED = b"removing memory module entries"
"""Said whenever a prefill is aborted, as a warning."""
_BUFFER = re.compile(r"(KV|RS|compute) buffer size\s*=\s*([0-9.]+) MiB")


class LlamaLog:
    """Takes llama.cpp's log over for the whole process."""

    _installed: ClassVar[LlamaLog | None] = None
    """Keeps the callback alive: C has a bare pointer to it, and llama.cpp logs when it is freed, too."""

    def __init__(self) -> None:
        self.loading = True
        """Lines are kept and everything from `info` on is shown; afterwards only warnings and errors are shown."""
        self._level = _INFO
        self._lines: deque[tuple[int, str]] = deque(maxlen=_LINES_KEPT)
        self.callback = llama_cpp.llama_log_callback(self._write)
        """For the logs of llama.cpp's other libraries."""

    def install(self) -> None:
        """Take over from whoever had it."""
        llama_cpp.llama_log_set(self.callback, None)
        LlamaLog._installed = self

    def reason(self) -> str:
        """What the last error lines say, or all that is known where none was logged."""
        errors = [text.strip() for level, text in self._lines if level == _ERROR and text.strip()]
        # The last lines only repeat that loading failed; the first says why.
        return errors[0] if errors else "llama.cpp gave no reason"

    def buffer_bytes(self, kinds: set[str]) -> int:
        """Bytes of the buffers of these kinds that loading has named."""
        total = 0.0
        for _, text in self._lines:
            if (found := _BUFFER.search(text)) and found[1] in kinds:
                total += float(found[2])
        return int(total * 1024 * 1024)

    def _write(self, level: int, text: bytes, _data: object) -> None:
        if level != _CONT:
            self._level = level
        if self.loading and self._level != _DEBUG:
            self._lines.append((self._level, text.decode("utf-8", "replace")))
        shown = {_WARN, _ERROR, _INFO} if self.loading else {_WARN, _ERROR}
        if self._level in shown and _EXPECTED not in text:
            sys.stderr.write(text.decode("utf-8", "replace"))
            sys.stderr.flush()
