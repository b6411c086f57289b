"""One daemon for each run folder: whoever holds the lock may bind, and nobody else touches the socket.

Binding a Unix socket unlinks and steals a live one without an error (cpython issue 121252), so EADDRINUSE protects
nothing: the lock is taken before any bind, and leftovers of a daemon that was killed are removed only under it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Self

import msgspec

from llmvisor import limits
from llmvisor.errors import StartError

LOCK_FILE = "daemon.lock"
_UNIX_FLAGS_FIELD = 3
_UNIX_PATH_FIELD = 7
_UNIX_LISTENING = b"00010000"
"""In /proc/net/unix: `__SO_ACCEPTCON`."""
EXIT_RUNNING = 1
EXIT_CONFIG = 78
"""`EX_CONFIG` of sysexits.h: starting again without a change is of no use."""


class Holder(msgspec.Struct, frozen=True):
    """What a running daemon writes into its lock file."""

    pid: int
    socket: str


class DaemonLock:
    """The right to be the daemon of `run_dir`, for as long as the `with` lasts.

    Entering raises `StartError`: exit code 1 where a daemon runs already, 78 where the folder or the socket's path
    cannot be trusted. The kernel lets go of the lock whenever the process ends, however it ends.
    """

    def __init__(
        self, run_dir: Path, *, socket_path: Path, socket_is_ours: bool = True, held_fd: int | None = None
    ) -> None:
        """`held_fd` is the descriptor that an earlier run of this process holds the lock with."""
        self._run_dir = run_dir
        self._held_fd = held_fd
        self._socket_path = socket_path
        self._socket_is_ours = socket_is_ours
        """It is open already otherwise, handed over by a service manager or an earlier run, and stays."""
        self._fd: int | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    @property
    def fd(self) -> int:
        """The descriptor that holds the lock, for a run of this process that follows."""
        assert self._fd is not None
        return self._fd

    def acquire(self) -> None:
        """Check the folder, take the lock, say who holds it, and remove the socket of a daemon that is gone."""
        secure_directory(self._run_dir)
        held_fd = self._take_held()
        fd = _open_lock_file(self._run_dir / LOCK_FILE) if held_fd is None else held_fd
        try:
            _lock(fd)
            _write_holder(fd, Holder(pid=os.getpid(), socket=str(self._socket_path)))
            if self._socket_is_ours:
                _refuse_served_socket(self._socket_path)
                remove_stale_socket(self._socket_path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _take_held(self) -> int | None:
        """The lock that this process has already, where it is that of the folder's file."""
        fd, self._held_fd = self._held_fd, None
        if fd is None:
            return None
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)
            if os.path.samestat(os.fstat(fd), (self._run_dir / LOCK_FILE).stat()):
                return fd
            os.close(fd)
        return None

    def release(self) -> None:
        """Let go of the lock. The file stays: unlinking it would let two daemons lock two files of one name."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)


def secure_directory(path: Path) -> None:
    """Make sure that a folder is ours alone, and create it where it is absent.

    Raises `StartError` (78) for a symbolic link, a folder of someone else, or one that others may enter.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise StartError(
            f"the run folder {path} cannot be created: {error.strerror}",
            hint="set control.socket to a path in a folder that you own",
            exit_code=EXIT_CONFIG,
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a folder"
        _refuse(f"the run folder {path} is {kind}", f"remove it, or set control.socket elsewhere: rm '{path}'")
    if status.st_uid != os.geteuid():
        _refuse(f"the run folder {path} belongs to uid {status.st_uid}", "set control.socket to a folder of yours")
    if stat.S_IMODE(status.st_mode) & 0o077:
        _refuse(
            f"the run folder {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 700 '{path}'"
        )


def remove_stale_socket(path: Path) -> None:
    """Remove the socket of a daemon that is gone; only to be called by the holder of the lock.

    Raises `StartError` (78) where something else than a socket of ours is in the way.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(
            f"the control socket {path} cannot be used: {error.strerror}", exit_code=EXIT_CONFIG
        ) from error
    if not stat.S_ISSOCK(status.st_mode):
        _refuse(
            f"{path} is in the way of the control socket, and is no socket", "move it, or set control.socket elsewhere"
        )
    if status.st_uid != os.geteuid():
        _refuse(f"the socket {path} belongs to uid {status.st_uid}", "set control.socket elsewhere")
    path.unlink()


def _refuse_served_socket(path: Path) -> None:
    """Raises `StartError` (1) where somebody else listens on the socket: a service manager, for a daemon to come.

    It is looked up, not connected to: that would start the manager's daemon. Where the system has no list, a socket
    that is there counts as stale.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_bytes().splitlines():
            fields = line.split(maxsplit=_UNIX_PATH_FIELD)
            listens = len(fields) > _UNIX_PATH_FIELD and fields[_UNIX_FLAGS_FIELD] == _UNIX_LISTENING
            if listens and fields[_UNIX_PATH_FIELD] == os.fsencode(path) and path.exists():
                raise StartError(
                    f"another process listens on the control socket {path}",
                    hint="a service manager? `llmctl service start` starts its daemon, `llmctl service stop` ends that",
                    exit_code=EXIT_RUNNING,
                )


def read_holder(run_dir: Path) -> Holder | None:
    """Who holds the lock of a run folder, as it says itself; None where nobody says so."""
    try:
        text = (run_dir / LOCK_FILE).read_bytes()
        return msgspec.json.decode(text, type=Holder)
    except (OSError, msgspec.MsgspecError, UnicodeError):
        return None


def _refuse(message: str, hint: str) -> None:
    raise StartError(message, hint=hint, exit_code=EXIT_CONFIG)


def _open_lock_file(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"the lock file {path} cannot be opened: {error.strerror}",
            hint=f"remove it: rm '{path}'",
            exit_code=EXIT_CONFIG,
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        _refuse(f"the lock file {path} is not a regular file", f"remove it: rm '{path}'")
    return fd


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _await_holder(fd)
        who = f"pid {holder.pid}, socket {holder.socket}" if holder else "it is just starting"
        raise StartError(
            f"llmvisor is already running: {who}",
            hint="`llmctl status` shows it, `llmctl shutdown` stops it",
            exit_code=EXIT_RUNNING,
        ) from None


def _await_holder(fd: int) -> Holder | None:
    """The holder's own words, which come a moment after its lock; until then those of a dead one may stand there."""
    for _ in range(limits.lock_holder_reads_max):
        try:
            holder = msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
        except (msgspec.MsgspecError, UnicodeError):
            holder = None
        if holder is not None and _is_alive(holder.pid):
            return holder
        time.sleep(limits.lock_holder_read_interval_seconds)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _write_holder(fd: int, holder: Holder) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, msgspec.json.encode(holder), 0)
