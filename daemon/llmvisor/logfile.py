"""Where log lines go: the console's descriptor, and a file that is rotated by size, backups and age.

Both are written by threads of `log.py` and never by the event loop: a reader that pauses for three seconds would stall
the loop for as long.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from llmvisor import limits
from llmvisor.clock import Clock

SECONDS_PER_DAY = 86_400


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, also where somebody made the descriptor non-blocking. Raises OSError.

    Straight to the descriptor: a thread that hangs inside `sys.stderr` would abort the interpreter at its exit.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


class RotatingFile:
    """A file that grows to `bytes_max`, is then kept as `.1` … `.backups_max`, and no longer than `age_days_max`.

    A file that cannot be opened or written (no permission, a full disk) is told through `on_problem` once, left alone
    for `log_file_retry_seconds`, and tried again; `on_problem(None)` says that it works.
    """

    def __init__(
        self,
        path: Path,
        *,
        bytes_max: int,
        backups_max: int,
        age_days_max: float,
        clock: Clock,
        on_problem: Callable[[OSError | None], None],
    ) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._backups_max = backups_max
        self._age_days_max = age_days_max
        self._clock = clock
        self._on_problem = on_problem
        self._fd: int | None = None
        self._size = 0
        self._retry_at: float | None = None
        self._sweep_at = clock.monotonic()

    def write(self, lines: list[bytes]) -> int:
        """Append lines; how many of them were lost."""
        now = self._clock.monotonic()
        if self._retry_at is not None and now < self._retry_at:
            return len(lines)
        written = 0
        try:
            for group in self._groups(lines):
                self._append(group)
                written += len(group)
            if now >= self._sweep_at:
                self._sweep_at = now + limits.log_sweep_seconds
                self._remove_old()
        except OSError as error:
            self._give_up_until(now + limits.log_file_retry_seconds, error)
        else:
            if self._retry_at is not None:
                self._retry_at = None
                self._on_problem(None)
        return len(lines) - written

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _groups(self, lines: list[bytes]) -> list[list[bytes]]:
        """The lines in runs that go into one file each."""
        groups: list[list[bytes]] = [[]]
        size = self._size if self._fd is not None else self._size_on_disk()
        for line in lines:
            if self._bytes_max and size and size + len(line) > self._bytes_max:
                groups.append([])
                size = 0
            groups[-1].append(line)
            size += len(line)
        return groups

    def _append(self, group: list[bytes]) -> None:
        data = b"".join(group)
        if self._fd is None:
            self._open()
        if self._bytes_max and self._size and self._size + len(data) > self._bytes_max:
            self._rotate()
        if self._fd is not None and data:
            write_all(self._fd, data)
            self._size += len(data)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        if not self._path.is_file():  # a device such as /dev/null is never renamed
            self._open()
            return
        for number in range(self._backups_max, 0, -1):
            source = self._backup(number - 1) if number > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                source.replace(self._backup(number))
        if not self._backups_max:
            self._path.unlink()
        self._remove_old()
        self._open()

    def _remove_old(self) -> None:
        if not self._age_days_max:
            return
        oldest = self._clock.now().timestamp() - self._age_days_max * SECONDS_PER_DAY
        for backup in self._path.parent.glob(f"{self._path.name}.*"):
            if backup.suffix[1:].isdigit() and backup.is_file() and backup.stat().st_mtime < oldest:
                backup.unlink(missing_ok=True)

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _size_on_disk(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _give_up_until(self, time: float, error: OSError) -> None:
        with contextlib.suppress(OSError):
            self.close()
        if self._retry_at is None:
            self._on_problem(error)
        self._retry_at = time
