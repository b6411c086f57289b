"""The configuration as one typed tree, with the bounds of every value. Pure.

The trees that `layers.load_config` gives are complete: paths are absolute, every model has its backend and tier
filled in, and `llm.temperature` and `llm.max_tokens` stand in each model that does not set its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmvisor.control.api import LogLevel
from llmvisor_runtimes.protocol import ModelOptions, Sampling

Tier = Literal["light", "medium", "heavy", "embedding", "reranker"]
Sandbox = Literal["auto", "off", "required"]
"""`auto` takes what the system has of it, `required` does not load a model without all of it."""
TIERS: tuple[Tier, ...] = ("light", "medium", "heavy", "embedding", "reranker")

AUTO = 0
"""What `auto` stands as in the tree: the port that is free, the number of threads that the backend finds right."""

# `extra` is read by `values.py`: `words` are texts that stand for a value, `form` names a check of its own and
# `allowed` says in an error message what that check takes.
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Port = Annotated[int, Meta(ge=0, le=65535, extra={"words": {"auto": AUTO}})]
Threads = Annotated[int, Meta(ge=0, le=1024, extra={"words": {"auto": AUTO}})]
Timeout = Annotated[float, Meta(ge=0.1, le=86_400)]
Idle = Annotated[float, Meta(ge=0, le=31_536_000)]
"""Seconds, of which 0 means never."""
Temperature = Annotated[float, Meta(ge=0, le=2)]
MaxTokens = Annotated[int, Meta(ge=1, le=16_777_216)]
Host = Annotated[
    str,
    Meta(
        pattern=r"[A-Za-z0-9._:%-]{1,255}",
        extra={"allowed": "a host name or an address, without port and brackets"},
    ),
]
AllowedHost = Annotated[
    str,
    Meta(pattern=r"[A-Za-z0-9._:%-]{1,255}", extra={"allowed": "host names or addresses, without scheme and port"}),
]
CorsOrigin = Annotated[
    str,
    Meta(
        pattern=r"(loopback|\*|https?://[A-Za-z0-9._:\[\]-]{1,255})",
        extra={"allowed": "`loopback`, `*`, or origins such as https://app.example"},
    ),
]
MediaHost = Annotated[
    str,
    Meta(
        max_length=262,
        pattern=r"((\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(:[1-9]\d{0,4})?",
        extra={"allowed": "hosts such as images.example, *.example.com, 10.0.0.5:9000 or [::1]:9000, without scheme"},
    ),
]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
SocketMode = Annotated[str, Meta(extra={"form": "octal", "allowed": 'an octal mode from "0600" to "0777"'})]
MemoryLimit = Annotated[
    str,
    Meta(
        max_length=64,
        extra={"form": "memory", "allowed": "a share such as 80%, or bytes such as 16GiB or 17179869184"},
    ),
]
Backoff = Annotated[float, Meta(ge=0, le=3600)]
EnvironmentValue = Annotated[str, Meta(max_length=32_768, extra={"form": "text"})]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything in the tree."""


class Server(Section, frozen=True):
    """The TCP port."""

    host: Host = "127.0.0.1"
    port: Port = 8000
    """0 takes a free one."""
    port_file: Text | None = ".port"
    management: bool = False
    """Management paths answer on TCP too, to an API key of that scope."""
    api_keys: Annotated[list[Text], Meta(max_length=1000)] = []
    """Environment variables and files that hold keys; those that `llmctl keys` made count beside them."""
    allowed_hosts: list[AllowedHost] = []
    cors_origins: list[CorsOrigin] = msgspec.field(default_factory=lambda: ["loopback"])
    media_hosts: list[MediaHost] = []
    """Hosts that images and sounds of a request may be fetched from; empty = none."""
    max_body_mb: Annotated[int, Meta(ge=1, le=1024)] = 32
    shutdown_timeout: Idle = 600.0
    """Seconds without a request before the daemon exits; 0 = never."""
    drain_timeout: Idle = 30.0
    upgrade_timeout: Idle = 120.0
    """What an upgrade in place waits for all that runs; it is given up after that."""
    upgrade: bool = False
    """SIGHUP upgrades in place, which reads the configuration too."""
    sandbox: Sandbox = "auto"
    """Whether workers are held to what they need, where a model does not say."""

    @property
    def body_bytes_max(self) -> int:
        return self.max_body_mb * 1024 * 1024


class Control(Section, frozen=True):
    """The Unix socket. The lock and the journal of workers stand in its folder."""

    socket: Text | None = None
    """Always set in a loaded tree."""
    mode: SocketMode = "0600"
    group: Name | None = None

    @property
    def mode_bits(self) -> int:
        return int(self.mode, 8)


class MainLog(Section, frozen=True):
    """The log of the daemon, on its standard error and in a file."""

    console_level: LogLevel = "info"
    file_level: LogLevel = "debug"
    file: Text | None = "logs/main.log"
    """None writes no file."""
    format: Literal["text", "json"] = "text"
    max_size_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    max_backups: Annotated[int, Meta(ge=0, le=1000)] = 3
    max_age_days: Annotated[int, Meta(ge=0, le=36_500)] = 28
    """0 keeps backups of any age."""


class Logging(Section, frozen=True):
    main: MainLog = MainLog()


class Memory(Section, frozen=True):
    """What the models' workers may take together, and how they make room for each other."""

    limit: MemoryLimit = "80%"
    min_residency: Annotated[float, Meta(ge=0, le=86_400)] = 10.0
    """Seconds that a loaded model keeps its memory at least while others wait for it; an idle one no longer than its
    reload would take."""
    wait_timeout: Timeout = 120.0
    """What a load waits for memory."""
    soft_free: MemoryLimit = "5%"
    """With less free on the machine, caches are given up and idle models unloaded."""
    hard_free: MemoryLimit = "2%"
    """With less, the worker that is most above its estimate is stopped."""

    def limit_bytes(self, total_bytes: int) -> int:
        """The bound for all workers together, where the machine (or its cgroup) has this much."""
        return memory_bytes(self.limit, total_bytes)

    def soft_free_bytes(self, total_bytes: int) -> int:
        return memory_bytes(self.soft_free, total_bytes)

    def hard_free_bytes(self, total_bytes: int) -> int:
        return memory_bytes(self.hard_free, total_bytes)


class Restart(Section, frozen=True):
    """How often a crashed worker is started again."""

    max: Annotated[int, Meta(ge=0, le=1000)] = 5
    """Restarts within `window`; 0 = none at all."""
    window: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    backoff: tuple[Backoff, Backoff] = (0.1, 10.0)
    """Seconds: the first wait, and the longest."""


class ModelConfig(Section, frozen=True):
    """One model, and how its worker runs."""

    path: Text | None = None
    backend: Name | None = None
    """Always set in a loaded tree."""
    tier: Tier | None = None
    aliases: list[Name] = []
    n_ctx: Annotated[int, Meta(ge=1, le=16_777_216)] = 8192
    n_batch: Annotated[int, Meta(ge=1, le=65_536)] = 512
    n_threads: Threads = AUTO
    n_gpu_layers: Annotated[int, Meta(ge=-1, le=10_000)] = -1
    """-1 = all."""
    parallel: Annotated[int, Meta(ge=1, le=256)] = 4
    temperature: Temperature | None = None
    """Always set in a loaded tree."""
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.95
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 40
    max_tokens: MaxTokens | None = None
    """Always set in a loaded tree."""
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.1
    use_mmap: bool = True
    use_mlock: bool = False
    embedding_mode: bool = False
    """Serve the vectors of a model that could generate text as well."""
    embedding_dimension: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    """Vectors are cut to so many numbers where a request does not say."""
    idle_timeout: Idle = 300.0
    preload: bool = False
    pinned: bool = False
    load_timeout: Timeout = 300.0
    stall_timeout: Timeout = 60.0
    queue_limit: Annotated[int, Meta(ge=0, le=100_000)] = 64
    """Requests that wait beside those that run; 0 = none."""
    restart: Restart = Restart()
    sandbox: Sandbox | None = None
    """Always set in a loaded tree."""
    env: dict[str, EnvironmentValue] = {}
    options: dict[str, object] = {}
    memory: MemoryLimit | None = None
    """What its worker takes, where that is known better than from its file and earlier loads."""

    def memory_bytes(self, total_bytes: int) -> int | None:
        """`memory`, where the machine has so much."""
        return None if self.memory is None else memory_bytes(self.memory, total_bytes)

    def sampling_defaults(self) -> Sampling:
        """How tokens are chosen where a request does not say."""
        defaults = Sampling()
        return msgspec.structs.replace(
            defaults,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repeat_penalty=self.repeat_penalty,
        )

    def model_options(self, state_dir: str = "") -> ModelOptions:
        """What the worker is told about loading."""
        return ModelOptions(
            n_ctx=self.n_ctx,
            n_batch=self.n_batch,
            n_threads=self.n_threads,
            n_gpu_layers=self.n_gpu_layers,
            parallel=self.parallel,
            use_mmap=self.use_mmap,
            use_mlock=self.use_mlock,
            embedding=self.embedding_mode,
            state_dir=state_dir,
            options={name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in self.options.items()},
        )


class Llm(Section, frozen=True):
    """What holds for all models."""

    default_service: Literal["local"] = "local"
    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 4096
    fallback_to_loaded: bool = True
    """An absent or `default` model name takes the first loaded one."""


class Cpu(Section, frozen=True):
    """The processor's cores, shared out among the models that compute at the moment."""

    threads: Threads = AUTO
    """How many there are to share; `auto` = the physical cores that the daemon may use."""


class Cache(Section, frozen=True):
    """What is kept of answers and of prompts."""

    enabled: bool = True
    max_size: Annotated[int, Meta(ge=0, le=10_000_000)] = 1000
    """Answers."""
    ttl_seconds: Annotated[float, Meta(gt=0, le=31_536_000)] = 3600.0
    always: bool = False
    """Keep generations too that are neither greedy nor seeded."""
    persist_to_disk: bool = False
    dir: Text = ".cache/responses"
    state_dir: Text | None = ".cache/state"
    """Where an unloaded model leaves what it has computed of prompts, for the next load; None = nowhere."""


class Storage(Section, frozen=True):
    dir: Text | None = None
    """Where the store (`llmvisor.db`) and installed models (`models/`) lie; None = the data folder."""


Url = Annotated[
    str,
    Meta(pattern=r"https?://[A-Za-z0-9._:%/\[\]-]{1,1024}", extra={"allowed": "a URL such as https://host.example"}),
]


class Downloads(Section, frozen=True):
    """How models are fetched."""

    jobs: Annotated[int, Meta(ge=1, le=64)] = 2
    """Models at the same time."""
    connections: Annotated[int, Meta(ge=1, le=32)] = 4
    """For one large file."""
    mb_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    """All of one model's connections together; 0 = as fast as it comes."""


class Registries(Section, frozen=True):
    """Where models are looked for."""

    huggingface: Url | None = None
    """HF_ENDPOINT, else the hub itself."""
    ollama: Url = "https://registry.ollama.ai"
    ollama_library: Url = "https://ollama.com"
    """Its search."""


class BackendConfig(Section, frozen=True):
    python: Text | None = None
    """The interpreter of this backend's workers; None = the daemon's own."""


class Config(Section, frozen=True):
    """All of it."""

    server: Server = Server()
    control: Control = Control()
    logging: Logging = Logging()
    memory: Memory = Memory()
    cache: Cache = Cache()
    cpu: Cpu = Cpu()
    storage: Storage = Storage()
    downloads: Downloads = Downloads()
    registries: Registries = Registries()
    models: dict[str, ModelConfig] = {}
    llm: Llm = Llm()
    backends: dict[str, BackendConfig] = {}


_UNITS: dict[str, int] = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def memory_bytes(text: str, total_bytes: int) -> int:
    """An amount of memory on a machine that has this much. Raises ValueError for what is none."""
    parsed = parse_memory(text)
    if parsed is None:
        raise ValueError(f"{text!r} is no amount of memory")
    share, size = parsed
    return size if share is None else int(total_bytes * share)


def parse_memory(text: str) -> tuple[float | None, int] | None:
    """A share of all memory (0–1) or else bytes; None where the text says neither, or nothing at all of it."""
    text = text.strip()
    digits = text.rstrip("%bBkKmMgGtTiI ")
    unit = text[len(digits) :].strip().lower()
    if not digits.replace(".", "", 1).isdecimal() or not digits.isascii() or len(digits) > 20:
        return None
    number = float(digits)
    if unit == "%":
        return (number / 100, 0) if 0 < number <= 100 else None
    if unit not in _UNITS or number * _UNITS[unit] < 1:
        return None
    return None, int(number * _UNITS[unit])
