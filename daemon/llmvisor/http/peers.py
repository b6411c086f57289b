"""Who is at the other end of the control socket: the kernel knows the user and the process.

The socket's mode keeps other users out already; this holds where a folder's or a socket's mode was changed by hand, and
it keeps our own workers out, which run as the same user and read what strangers have made.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress
from typing import NamedTuple

from llmvisor.supervision.workers.spawn import NONCE_VARIABLE

_UCRED = struct.Struct("=iII")
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2
"""macOS's, for which Python has no names."""
_XUCRED = struct.Struct("=II")


class Peer(NamedTuple):
    pid: int
    """0 = not known: it runs in a namespace that we do not see into."""
    uid: int


def peer_of(connection: socket.socket) -> Peer | None:
    """Who connected, as of then; None where the system does not tell."""
    with suppress(OSError, struct.error):
        if sys.platform == "linux":
            pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            return Peer(pid, uid)
        if sys.platform == "darwin":
            _, uid = _XUCRED.unpack_from(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
            return Peer(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID), uid)
    return None


def refused_peer(connection: socket.socket, *, shared: bool) -> str | None:
    """Why whoever connected may not manage the daemon; None where they may.

    `shared`: the configuration lets other users in, by the socket's mode.
    """
    peer = peer_of(connection)
    if peer is None:
        return None if shared or sys.platform not in {"linux", "darwin"} else "the system does not say who connected"
    if not shared and peer.uid not in {0, os.geteuid()}:
        return f"it belongs to uid {peer.uid}"
    if peer.pid == 0 or peer.pid == os.getpid():
        return None
    return _refused_process(peer.pid)


def _refused_process(pid: int) -> str | None:
    """A worker, or what one has started: in its session, or with what it has in its environment."""
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        return f"process {pid} is gone"
    except PermissionError:
        return None
    if _parent_of(session) == os.getpid():
        return f"process {pid} is a worker's"
    with suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        if any(line.startswith(f"{NONCE_VARIABLE}=".encode()) for line in file.read().split(b"\0")):
            return f"process {pid} was started by a worker"
    return None


def _parent_of(pid: int) -> int | None:
    with suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return None
