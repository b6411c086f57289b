"""What a person may set of the HTTP front, and the bounds that tests shorten."""

from __future__ import annotations

import msgspec

from llmvisor import limits


class HttpSettings(msgspec.Struct):
    """Shared by all whom it concerns, so that it can change while they serve."""

    host: str = "127.0.0.1"
    """What the TCP port is bound to; a name or address that clients may put into Host."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beyond loopback and the bound address."""
    cors_origins: tuple[str, ...] = ("loopback",)
    """`loopback`, `*`, or origins such as `https://app.example`."""
    max_body_bytes: int = 32 * 1024 * 1024
    management: bool = False
    """Whether management paths answer on TCP, too: always to a key of that scope alone."""
    media_hosts: tuple[str, ...] = ()
    """What images and sounds may be fetched from: `images.example`, `*.example.com`, `127.0.0.1:9000`."""
    media_seconds_max: float = limits.media_fetch_seconds_max
    keepalive_seconds: float = limits.keepalive_seconds
    lingering_seconds: float = limits.lingering_seconds
    body_seconds_max: float = limits.body_seconds_max
    body_bytes_per_second_min: int = limits.body_bytes_per_second_min
    header_bytes_max: int = limits.header_bytes_max
    connections_max: int = limits.connections_max
    control_connections_max: int = limits.control_connections_max
    control_shared: bool = False
    """Whether other users may use the control socket, as far as its mode lets them."""
    heartbeat_seconds: float = limits.heartbeat_seconds
    write_stall_seconds_max: float = limits.write_stall_seconds_max
    handler_cleanup_seconds: float = limits.handler_cleanup_seconds

    def take(self, other: HttpSettings) -> None:
        """Say the same as another one from now on."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(other, name))
