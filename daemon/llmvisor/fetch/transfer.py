"""One file on its way: several connections that each ask for the next missing piece, and ask again when they fail."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import msgspec
from yarl import URL

from llmvisor.clock import Clock
from llmvisor.fetch import answers, limits
from llmvisor.fetch.answers import Interrupted
from llmvisor.fetch.connection_errors import reason
from llmvisor.fetch.failures import FetchProblem, disk_problem, gravest
from llmvisor.fetch.pace import Throttle, backoff_seconds
from llmvisor.fetch.partial import PartialFile
from llmvisor.fetch.ranges import next_missing
from llmvisor.fetch.route import Route
from llmvisor.fetch.staging import check_space
from llmvisor.fetch.tally import Tally


class RemoteFile(msgspec.Struct, frozen=True):
    """One file to fetch."""

    url: str
    path: str
    """Where it goes, relative to the staging folder, with `/`."""
    size: int | None = None
    """Bytes, as the source says it; a server that has another number is refused."""
    sha256: str | None = None
    """In hexadecimal. Without it only the size and the server's own ETag tell that the file is what it should be."""
    headers: dict[str, str] = {}
    """Such as `Authorization`, which does not follow a redirect to another host."""
    etag: str | None = None
    """What changes at the source when the content does, in any form: a partial of another one is begun again."""


class Changed(Exception):
    """The server has another file than the one whose bytes are there."""


@dataclass(eq=False)
class Piece:
    """What one connection is at."""

    at: int
    """The next byte that it wants."""
    end: int
    """Exclusive."""


class Surroundings(msgspec.Struct, frozen=True):
    """What all files of a fetch share."""

    session: aiohttp.ClientSession
    connections: int
    throttle: Throttle
    tally: Tally
    clock: Clock
    random: Callable[[], float]


class Transfer:
    """Brings the missing bytes of one file into its partial."""

    def __init__(self, file: RemoteFile, partial: PartialFile, around: Surroundings) -> None:
        self._file = file
        self._partial = partial
        self._around = around
        self._route = Route(file.url, file.headers)
        self._pieces: set[Piece] = set()
        self._answered = asyncio.Event()
        self._takes_ranges = True
        self._connections = 0

    async def run(self) -> None:
        """Raises `FetchProblem`. Afterwards the partial is whole."""
        for _ in range(limits.fetch_restarts_max + 1):
            try:
                await self._fetch_missing()
            except Changed:
                self._partial.clear()
            else:
                return
        message = f"{self._file.path} changes on the server while it is fetched"
        raise FetchProblem("network", message, hint="try again later")

    async def _fetch_missing(self) -> None:
        self._answered.clear()
        self._takes_ranges = True
        small = self._size is not None and self._size <= limits.fetch_piece_bytes
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(1 if small else self._around.connections):
                    group.create_task(self._connection(first=number == 0), name=f"connection {number}")
        except BaseExceptionGroup as errors:
            raise gravest(errors) from None
        finally:
            self._partial.save()

    @property
    def _size(self) -> int | None:
        known = self._partial.state.size
        return known if known is not None else self._file.size

    async def _connection(self, *, first: bool) -> None:
        """Fetch pieces until none is missing. The first one finds out how large the file is, and the others wait."""
        if not first:
            await self._answered.wait()
        self._connections += 1
        try:
            while (first or self._takes_ranges) and (piece := self._claim()) is not None:
                try:
                    if not await self._bring(piece):
                        return
                finally:
                    self._pieces.discard(piece)
        finally:
            self._connections -= 1
            self._answered.set()

    def _claim(self) -> Piece | None:
        """The next piece that is neither there nor asked for."""
        taken = [*self._partial.state.written, *((piece.at, piece.end) for piece in self._pieces)]
        found = next_missing(taken, size=self._size, bytes_max=self._piece_bytes())
        if found is None:
            return None
        piece = Piece(*found)
        self._pieces.add(piece)
        return piece

    def _piece_bytes(self) -> int:
        """What one request asks for: a few pieces for each connection, so that all of them end at about one time."""
        if self._size is None:
            return min(limits.fetch_piece_bytes_min, limits.fetch_piece_bytes)
        if self._around.connections == 1:
            return max(1, self._size)
        even = self._size // (4 * self._around.connections)
        return min(max(even, limits.fetch_piece_bytes_min), limits.fetch_piece_bytes)

    async def _bring(self, piece: Piece) -> bool:
        """Ask until the whole piece has come. False: one connection less would be better."""
        failures = 0
        while piece.at < piece.end:
            before = piece.at
            try:
                await self._request(piece)
            except Interrupted as interrupted:
                if interrupted.busy and self._connections > 1:
                    return False
                # Without ranges each try begins at the first byte: only the bound on tries ends that.
                moved = self._takes_ranges and piece.at - before >= limits.fetch_progress_bytes_min
                failures = 1 if moved else failures + 1
                await self._wait(failures, interrupted)
        return True

    async def _wait(self, failures: int, interrupted: Interrupted) -> None:
        after = interrupted.retry_after_seconds or 0.0
        if failures >= limits.fetch_tries_max or after > limits.fetch_retry_after_seconds_max:
            raise FetchProblem(
                "network",
                f"{self._file.path}: {interrupted.reason}",
                hint="check the network and the source; what was fetched is kept",
                retry_after_seconds=interrupted.retry_after_seconds,
            )
        await asyncio.sleep(max(after, backoff_seconds(failures, self._around.random)))

    # ---------------------------------------------------------------------------------------------------- one request

    async def _request(self, piece: Piece) -> None:
        """Raises `Interrupted`, `Changed`, `FetchProblem`."""
        address = self._route.address
        headers = self._route.headers(address) | {"Range": f"bytes={piece.at}-{piece.end - 1}"}
        try:
            async with self._around.session.get(
                address, headers=headers, max_redirects=limits.fetch_redirects_max
            ) as response:
                self._route.arrived(response)
                self._accept(response, piece, address)
                self._answered.set()
                await self._read(response, piece)
        except (aiohttp.TooManyRedirects, aiohttp.InvalidURL) as error:
            message = f"{self._file.path}: {reason(error)}"
            raise FetchProblem("invalid", message, hint="check the source's address") from error
        except aiohttp.ClientSSLError as error:
            hint = "SSL_CERT_FILE names the certificates of a network of your own"
            raise FetchProblem("invalid", f"{self._file.path}: {reason(error)}", hint=hint) from error
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            if isinstance(error, aiohttp.ClientConnectorError):
                self._route.lost(address)  # the source may name a host that is there
            raise Interrupted(reason(error)) from error

    def _accept(self, response: aiohttp.ClientResponse, piece: Piece, address: URL) -> None:
        """Make the piece what the answer brings. Raises as `_request`."""
        headers = response.headers
        if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            raise Interrupted("it was sent compressed, which was not asked for")
        if response.status == 206:
            self._accept_range(answers.content_range(headers), headers, piece)
        elif response.status == 200:
            self._accept_whole(response, piece)
        elif response.status == 416:
            self._accept_nothing(answers.unsatisfied_size(headers), piece)
        else:
            refusal = answers.refusal(response.status, headers, self._file.path, self._around.clock.now())
            if self._route.lost(address) and not isinstance(
                refusal, Interrupted
            ):  # a signed address is good for a while
                refusal = Interrupted(refusal.message)
            raise refusal

    def _accept_range(self, held: answers.ContentRange, headers: Mapping[str, str], piece: Piece) -> None:
        if held.start != piece.at or held.end > piece.end:
            raise Interrupted(f"it sent the bytes {held.start}-{held.end - 1} instead of those it was asked for")
        if held.size is None:
            raise Interrupted("it does not say how large the file is")
        self._agree(held.size, answers.validator(headers))
        piece.end = min(piece.end, held.size)

    def _accept_whole(self, response: aiohttp.ClientResponse, piece: Piece) -> None:
        """The server takes no ranges: one connection brings everything, from the first byte."""
        if self._answered.is_set() and self._takes_ranges:
            raise Interrupted("it sent the whole file instead of the bytes it was asked for")
        self._takes_ranges = False
        if self._partial.bytes_there:
            with self._on_disk():
                self._partial.clear()
        size, validator = response.content_length, answers.validator(response.headers)
        if size is not None:
            self._agree(size, validator)
        else:  # a later answer may say it, and be of another file
            self._partial.state.validator = validator
        piece.at, piece.end = 0, self._size if self._size is not None else sys.maxsize

    def _accept_nothing(self, size: int | None, piece: Piece) -> None:
        """There is nothing at this offset: the file is empty, or shorter than the one that was begun."""
        if size is None:
            raise Interrupted("it has no such bytes, and does not say how many it has")
        self._agree(size, None)
        if piece.at < size:
            raise Interrupted("it has the bytes, and does not send them")
        piece.end = piece.at

    def _agree(self, size: int, validator: str | None) -> None:
        """Hold what the server says of the file against what is known. Raises `Changed`, `FetchProblem`."""
        state = self._partial.state
        if self._file.size is not None and size != self._file.size:
            message = f"{self._file.path} has {size} bytes on the server, and should have {self._file.size}"
            raise FetchProblem("invalid", message, hint="the source is being changed, or is wrong: try again later")
        if state.size not in {None, size} or (state.written and state.written[-1][1] > size):
            raise Changed
        # The nodes of one network may name the same file differently: a checksum tells better.
        if self._file.sha256 is None and None not in (state.validator, validator) and state.validator != validator:
            raise Changed
        if state.size is None:
            check_space(self._partial.path.parent, size - self._partial.bytes_there)
            self._around.tally.know(self._file.path, size)
        state.size, state.validator = size, state.validator or validator

    async def _read(self, response: aiohttp.ClientResponse, piece: Piece) -> None:
        around = self._around
        async for chunk in response.content.iter_chunked(around.throttle.chunk_bytes):
            if piece.at + len(chunk) > piece.end:
                raise Interrupted("it sent more than it said")
            self._write(piece, chunk)
            around.tally.there(self._file.path, self._partial.bytes_there)
            if self._partial.sync_due:
                with self._on_disk():
                    self._partial.noted(await asyncio.to_thread(self._partial.sync))
            if (seconds := around.throttle.seconds_to_wait(len(chunk), around.clock.monotonic())) > 0:
                await asyncio.sleep(seconds)
        if piece.end == sys.maxsize:  # the end of the answer is the only sign of the file's size
            piece.end = self._partial.state.size = piece.at
        elif piece.at < piece.end:
            raise Interrupted("it ended too early")

    def _write(self, piece: Piece, chunk: bytes) -> None:
        with self._on_disk():
            self._partial.write(piece.at, chunk)
        piece.at += len(chunk)

    @contextmanager
    def _on_disk(self) -> Generator[None]:
        """A disk that fails is told from a network that fails, whose errors are OSErrors as well."""
        try:
            yield
        except OSError as error:
            raise disk_problem(error, str(self._partial.path)) from error
