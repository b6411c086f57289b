"""A client's connection, as one run of the daemon hands it to the next. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ConnectionHandover(msgspec.Struct, frozen=True):
    """A connection that waits for a request."""

    fd: Annotated[int, msgspec.Meta(gt=2, lt=2**20)]
    begun: bytes = b""
    """What has come of the next request's headers."""
