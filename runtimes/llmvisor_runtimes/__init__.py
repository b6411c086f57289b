"""llmvisor's worker side: the frame protocol, the host process and the backends.

Imports msgspec and the standard library alone; a backend imports its own engine inside its own module.
"""

__version__ = "0.1.0"
