"""What the daemon's own process may have, and how it stands when the kernel looks for memory."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from llmvisor import limits


def protect_daemon() -> None:
    """Let the kernel end workers before the daemon, and let it have the descriptors that the system allows.

    Both as far as the system permits: an unprivileged process cannot lower its own score.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(f"{limits.daemon_oom_score_adj}\n", encoding="ascii")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.open_files_wanted if hard == resource.RLIM_INFINITY else min(hard, limits.open_files_wanted)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_max() -> int:
    """Connections that may be open at once, so that descriptors for workers and files are always left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(limits.connections_max, soft - min(limits.open_files_reserved, soft // 2)))
