"""Installations through a real daemon, from a hub on loopback that is as slow as a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from tests.support.daemon import Daemon, Json, alive
from tests.support.http_double import CHUNK_BYTES, Fault
from tests.support.hub_double import HubDouble, Repository
from tests.support.polling import eventually_sync

from llmvisor.fetch.protocol import Fetched
from llmvisor.models.manifest import decode

ENDED = {"succeeded", "failed", "cancelled"}
SOURCE = "hf:org/tiny"


class SlowHub(HubDouble):
    """Sends `bytes_per_second` of each content, or stops after `hold_after_bytes` until `release`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(
            {"org/tiny": Repository({"tiny.Q4_K_M.gguf": content}), "org/more": Repository({"more.gguf": content})}
        )
        self.chunk_seconds = 0.0
        self.answer_seconds = 0.0
        self.hold_after_bytes: int | None = None
        self.sent_bytes = 0

    async def answer(self, request: web.BaseRequest, fault: Fault | None) -> web.StreamResponse:
        await asyncio.sleep(self.answer_seconds)
        return await super().answer(request, fault)

    async def send(
        self, request: web.BaseRequest, content: bytes, headers: Mapping[str, str], fault: Fault | None
    ) -> web.StreamResponse:
        if request.method == "HEAD" or fault is not None:
            return await super().send(request, content, headers, fault)
        first, last, status = 0, len(content) - 1, 200
        if wanted := request.headers.get("Range"):
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(begin), min(int(end or last), last), 206
        response = web.StreamResponse(status=status, headers={**headers, "Accept-Ranges": "bytes"})
        response.content_length = last - first + 1
        if status == 206:
            response.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        await response.prepare(request)
        with suppress(ConnectionError):  # the client left
            await self._pour(response, content[first : last + 1])
        return response

    async def _pour(self, response: web.StreamResponse, content: bytes) -> None:
        for place in range(0, len(content), CHUNK_BYTES):
            while self.hold_after_bytes is not None and self.sent_bytes >= self.hold_after_bytes:  # noqa: ASYNC110 - set by another thread
                await asyncio.sleep(0.01)
            chunk = content[place : place + CHUNK_BYTES]
            await response.write(chunk)
            self.sent_bytes += len(chunk)
            await asyncio.sleep(self.chunk_seconds)


def hub_settings(hub: HubDouble, **downloads: object) -> Json:
    """Of a daemon that installs from this hub."""
    return {"registries": {"huggingface": hub.url}, "downloads": {"connections": 2, **downloads}}


def submit(daemon: Daemon, type: str, *, key: str | None = None, **params: object) -> Json:
    body: Json = {"type": type, "params": params} | ({"idempotency_key": key} if key else {})
    status, job = daemon.control("POST", "/jobs", body)
    assert status == 202, job
    return job


def wait_for(daemon: Daemon, job: Json, *states: str, seconds: float = 60) -> Json:
    """The job, once it is in one of these states; once it has ended, where none is said."""
    found: list[Json] = []

    def there() -> bool:
        found[:] = [daemon.control("GET", f"/jobs/{job['id']}")[1]]
        return found[0]["state"] in (states or ENDED)

    eventually_sync(there, seconds, f"the job {job['id']} is {' or '.join(states) or 'over'}")
    return found[0]


def events(daemon: Daemon, job: Json, *, after: int | None = None) -> Iterator[tuple[int, Json]]:
    """Every event of a job with its number, up to its end or the daemon's."""
    connection = daemon.control_connection()
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    number = 0
    try:
        connection.request("GET", f"/jobs/{job['id']}/events", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200
        while line := answer.readline():
            if line.startswith(b"id: "):
                number = int(line[4:])
            elif line.startswith(b"data: "):
                yield number, json.loads(line[6:])
    finally:
        connection.close()


def at_stage(daemon: Daemon, job: Json, stage: str) -> Json:
    """The job at the first event of this stage, or after it."""
    for _, one in events(daemon, job):
        if one["stage"] == stage or one["state"] in ENDED:
            return one
    raise AssertionError(f"the job never came to {stage}")


def models_folder(daemon: Daemon) -> Path:
    return daemon.folder / "data" / "models"


def visible_models(daemon: Daemon) -> list[str]:
    """Names of the models that lie in the folder for everybody to see. Fails where one of them is not whole."""
    folder = models_folder(daemon)
    found = [path for path in folder.glob("*/*") if not path.relative_to(folder).parts[0].startswith(".")]
    for path in found:
        fetched = decode((path / "manifest.json").read_bytes()).fetched
        _check_whole(fetched, path)
    return [path.parent.name for path in found]


def _check_whole(fetched: Fetched, folder: Path) -> None:
    assert fetched.files
    if fetched.linked_to is not None:
        return  # they lie somewhere else
    for file in fetched.files:
        content = (folder / file.path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {Path(file.path).name for file in fetched.files} | {"manifest.json"}


def staged(daemon: Daemon) -> list[str]:
    """What lies in staging and in the bin."""
    folder = models_folder(daemon)
    return [path.name for part in (".staging", ".trash") for path in (folder / part).glob("*")]


def staged_bytes(daemon: Daemon) -> int:
    """On the disk, in staging; holes do not count."""
    files = [path for path in (models_folder(daemon) / ".staging").rglob("*") if path.is_file()]
    return sum(512 * path.stat().st_blocks for path in files)


def listed(daemon: Daemon) -> list[Any]:
    """The installed models that the daemon tells."""
    return [one for one in daemon.control("GET", "/llm/models")[1]["data"] if one["source"]]


def fetchers(daemon: Daemon) -> list[psutil.Process]:
    """The processes of this daemon that fetch."""
    return [one for one in daemon.descendants() if "llmvisor.fetch" in " ".join(one.cmdline())]


def kill_and_restart(daemon: Daemon) -> None:
    """SIGKILL to the daemon alone: what it has started has to see to its own end."""
    children = daemon.descendants()
    daemon.signal(signal.SIGKILL)
    daemon.wait()
    visible_models(daemon)
    eventually_sync(lambda: not any(alive(one.pid) for one in children), 10, "nothing survives its daemon")
    daemon.port_file.unlink(missing_ok=True)
    daemon.start()


def check_installed(daemon: Daemon) -> None:
    """The model `tiny` is there once and whole, and nothing is left of how it came."""
    assert visible_models(daemon) == ["tiny"]
    assert [(one["name"], one["source"].partition(":")[0]) for one in listed(daemon)] == [("tiny", "hf")]
    eventually_sync(lambda: staged(daemon) == [], 10, "nothing is left in staging")
    assert [job["state"] for job in daemon.control("GET", "/jobs?type=install")[1]["data"]] == ["succeeded"]
    assert fetchers(daemon) == []
