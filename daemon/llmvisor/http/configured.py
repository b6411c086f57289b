"""The HTTP front's settings, as the configuration has them."""

from __future__ import annotations

from llmvisor.config.tree import Config
from llmvisor.http.settings import HttpSettings
from llmvisor.process import connections_max


def http_settings(config: Config, *, bound_host: str, socket_handed_over: bool = False) -> HttpSettings:
    """`bound_host` is the address that the TCP socket has.

    A control socket that was handed over has the mode that the service manager was told: whom it lets in is let in.
    """
    server = config.server
    return HttpSettings(
        host=bound_host,
        allowed_hosts=(server.host, *server.allowed_hosts),
        cors_origins=tuple(server.cors_origins),
        max_body_bytes=server.body_bytes_max,
        media_hosts=tuple(server.media_hosts),
        management=server.management,
        connections_max=connections_max(),
        control_shared=socket_handed_over or bool(config.control.mode_bits & 0o066),
    )
