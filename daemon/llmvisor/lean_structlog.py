"""structlog without rich, which it would import for a development console that the daemon never shows.

That import is a sixth of the daemon's start and 4 MB of its memory. Import `structlog` from here before anything else
imports it; where it or rich is loaded already, nothing is changed.
"""

from __future__ import annotations

import sys
from typing import cast

_LEAN = not {"rich", "structlog"} & sys.modules.keys()
if _LEAN:
    # None makes an import of it fail, which structlog takes for "not installed".
    cast("dict[str, object]", sys.modules)["rich"] = None
try:
    import structlog
finally:
    if _LEAN:
        del sys.modules["rich"]

__all__ = ["structlog"]
