"""How far a fetch of several files is."""

from __future__ import annotations

from collections.abc import Callable

from llmvisor.fetch.protocol import FetchProgress

Report = Callable[[FetchProgress], None]
"""Takes every progress; the process writes at most ten a second of them."""


class Tally:
    """Counts bytes over all files, and reports each change."""

    def __init__(self, report: Report, sizes: dict[str, int | None]) -> None:
        self._report = report
        self._sizes = dict(sizes)
        self._unknown = sum(size is None for size in sizes.values())
        self._done = dict.fromkeys(sizes, 0)
        self._bytes_done = 0
        self._bytes_total = sum(size or 0 for size in sizes.values())
        self._stage = "downloading"
        self._file = ""
        self._files_done = 0

    def begin(self, path: str, stage: str) -> None:
        """This file is under way from now on."""
        self._file, self._stage = path, stage
        self.report()

    def there(self, path: str, bytes_there: int) -> None:
        """So many of this file's bytes are there."""
        self._bytes_done += bytes_there - self._done[path]
        self._done[path] = bytes_there
        self.report()

    def know(self, path: str, size: int) -> None:
        """The size of a file, once the server has said it."""
        before = self._sizes[path]
        self._unknown -= before is None
        self._bytes_total += size - (before or 0)
        self._sizes[path] = size

    def end(self, path: str, size: int) -> None:
        """This file is done."""
        self._files_done += 1
        self.know(path, size)
        self.there(path, size)

    def report(self) -> None:
        self._report(
            FetchProgress(
                self._stage,
                bytes_done=self._bytes_done,
                bytes_total=0 if self._unknown else self._bytes_total,
                file=self._file,
                files_done=self._files_done,
                files_total=len(self._sizes),
            )
        )
