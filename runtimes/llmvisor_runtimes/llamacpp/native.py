"""llama_cpp, the ctypes module, as this package uses it.

Its annotations name what ctypes converts from and not what it gives, so they are set aside in this one place; what is
read through it gets its type where it is read.
"""

from __future__ import annotations

import os
from typing import Any

# Where ggml aborts it would start a debugger on this very process, and the worker be gone seconds later only.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import llama_cpp as _llama_cpp

llama_cpp: Any = _llama_cpp
