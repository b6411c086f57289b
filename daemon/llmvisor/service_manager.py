"""What a service manager (systemd, launchd) gives the daemon that it starts: somebody to report to, and sockets."""

from __future__ import annotations

from collections.abc import MutableMapping

import msgspec

from llmvisor.activation import HandedOver, launchd_lookup, take_sockets
from llmvisor.clock import Clock
from llmvisor.notify import Notifier, take_notifier


class ServiceManager(msgspec.Struct, frozen=True):
    """Without one, nobody is told, and nothing is handed over."""

    notifier: Notifier = msgspec.field(default_factory=Notifier)
    sockets: HandedOver = HandedOver()


def take_service_manager(environ: MutableMapping[str, str], *, clock: Clock) -> ServiceManager:
    """Whoever started this process, as its environment tells; it tells no child of ours. Raises `StartError`."""
    return ServiceManager(
        notifier=take_notifier(environ, clock=clock), sockets=take_sockets(environ, launchd=launchd_lookup())
    )
