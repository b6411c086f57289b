"""Builds the jobs' engine from the configuration."""

from __future__ import annotations

import functools
import os
import random
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from llmvisor.clock import Clock
from llmvisor.config.tree import Config
from llmvisor.control.api import Job, JobParams
from llmvisor.fetch.protocol import FetchRequest
from llmvisor.jobs.engine import Jobs
from llmvisor.jobs.fetching import FetchRunner, fetch_environment
from llmvisor.jobs.recorder import JobRecords
from llmvisor.jobs.work import Library, Work
from llmvisor.supervision.runtime import Runtime
from llmvisor.supervision.workers.orphans import OrphanJournal

_BYTES_PER_MB = 1_000_000


def make_fetch_runner(*, run_dir: Path, clock: Clock) -> FetchRunner:
    """What starts fetch processes; they are swept with the workers of `run_dir` where they outlive the daemon."""
    return FetchRunner(
        command=[sys.executable, "-P", "-m", "llmvisor.fetch"],
        environment=fetch_environment(os.environ),
        journal=functools.partial(OrphanJournal, run_dir),
        nonce_source=functools.partial(secrets.token_hex, 16),
        clock=clock,
    )


def make_jobs(
    config: Callable[[], Config],
    *,
    runtime: Callable[[str], Runtime],
    library: Library,
    fetcher: FetchRunner,
    records: JobRecords,
    publish: Callable[[Job], None],
    new_id: Callable[[], str],
    clock: Clock,
) -> Jobs:
    """The engine. `config` gives what holds, and `runtime` finds a model's runtime (raising `ModelNotFound`)."""
    work = Work(
        runtime=runtime,
        library=library,
        fetcher=fetcher,
        request=lambda params, staging: fetch_request(params, staging, config=config()),
    )
    return Jobs(
        work=work,
        records=records,
        publish=publish,
        new_id=new_id,
        clock=clock,
        random=random.random,
        fetches_max=config().downloads.jobs,
    )


def fetch_request(params: JobParams, staging: str, *, config: Config) -> FetchRequest:
    """What the fetch process is told for an installation or an import; an update says its source itself."""
    return FetchRequest(
        source=params.source or f"file:{params.path}",
        staging=staging,
        quantization=params.quantization,
        mode=params.mode,
        connections=config.downloads.connections,
        bytes_per_second_max=int(config.downloads.mb_per_second * _BYTES_PER_MB),
        huggingface_endpoint=config.registries.huggingface,
        ollama_registry=config.registries.ollama,
    )
