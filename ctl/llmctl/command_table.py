"""Every command of llmctl: what it is for, examples, and where it is. Help, completion and the man page read this."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from llmctl import options


class Command(NamedTuple):
    """One command; `entry` is `module:function` below `llmctl.commands`."""

    name: str
    entry: str
    summary: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None] = options.nothing


_SEE = (
    Command(
        "status",
        "status:status",
        "the daemon, its models and what they do",
        ("llmctl status", "llmctl status light", "llmctl status --watch", "llmctl status --json | jq .health"),
        options.status,
    ),
    Command(
        "models",
        "models:models",
        "every model, with type, size and state",
        (
            "llmctl models",
            "llmctl models --state loaded",
            "llmctl models --search qwen --json",
            "llmctl models rollback qwen2.5-7b",
        ),
        options.models,
    ),
    Command(
        "show",
        "models:show",
        "all that is known of a model",
        ("llmctl show light", "llmctl show light --json"),
        options.one_model,
    ),
    Command(
        "backends",
        "backends:backends",
        "the engines: installed, usable, version, devices",
        ("llmctl backends", "llmctl backends --json"),
    ),
    Command(
        "logs",
        "logs:logs",
        "what the daemon and its workers say",
        ("llmctl logs", "llmctl logs -f --level warning", "llmctl logs -f --model light"),
        options.logs,
    ),
    Command(
        "events",
        "logs:events",
        "state changes as they happen",
        ("llmctl events", "llmctl events --json | jq .runtime.state"),
    ),
    Command(
        "jobs",
        "jobs:jobs",
        "installations, loads and the like: running, ended",
        ("llmctl jobs", "llmctl jobs watch", "llmctl jobs cancel job_01", "llmctl jobs --state failed"),
        options.jobs,
    ),
    Command(
        "usage",
        "usage:usage",
        "requests, tokens and times, summed up",
        ("llmctl usage", "llmctl usage --by model,day", "llmctl usage --by tier --json"),
        options.usage,
    ),
    Command(
        "postmortem",
        "postmortem:postmortem",
        "the last crashes of the workers",
        ("llmctl postmortem", "llmctl postmortem light", "llmctl postmortem light --number 2 --json"),
        options.postmortem,
    ),
    Command(
        "cache",
        "cache:cache",
        "the response cache: stats, clear",
        ("llmctl cache", "llmctl cache clear"),
        options.cache,
    ),
)

_MODELS = (
    Command(
        "install",
        "install:install",
        "fetch a model, and keep it",
        (
            "llmctl install",
            "llmctl install starter",
            "llmctl install hf:Qwen/Qwen3-4B-GGUF --tier medium",
            "llmctl install ollama:qwen3:8b --name qwen",
        ),
        options.install,
    ),
    Command(
        "import",
        "install:import_",
        "take in a model from a file or a folder",
        ("llmctl import ~/models/qwen.gguf --tier heavy", "llmctl import ./bge-m3 --link"),
        options.import_,
    ),
    Command(
        "search",
        "search:search",
        "look for models on Hugging Face and in Ollama's library",
        ("llmctl search qwen3 gguf", "llmctl search llama --registry ollama"),
        options.search,
    ),
    Command(
        "update",
        "install:update",
        "fetch an installed model's new revision, if there is one",
        ("llmctl update qwen", "llmctl update --all"),
        options.update,
    ),
    Command(
        "delete",
        "install:delete",
        "remove an installed model from the disk",
        ("llmctl delete qwen", "llmctl delete qwen --yes"),
        options.delete,
    ),
    Command(
        "load",
        "load:load",
        "load a model, and wait until it is ready",
        ("llmctl load light", "llmctl load light --no-wait", "llmctl load heavy --timeout 120"),
        options.waiting,
    ),
    Command(
        "unload",
        "load:unload",
        "end a model's worker once its requests are done",
        ("llmctl unload light", "llmctl unload light --force"),
        options.unload,
    ),
    Command(
        "restart",
        "load:restart",
        "a new worker, and earlier crashes forgotten",
        ("llmctl restart light",),
        options.waiting,
    ),
)

_TALK = (
    Command(
        "run",
        "run:run",
        "one prompt, the answer as it comes",
        (
            'llmctl run light "Why is the sky blue?"',
            "git diff | llmctl run light -",
            'cat notes.txt | llmctl run light "Summarise this:"',
        ),
        options.run,
    ),
    Command(
        "embed",
        "encode:embed",
        "the vectors of texts",
        ('llmctl embed embedding "a text" "another"', "llmctl embed embedding --dimensions 256 < texts.txt"),
        options.embed,
    ),
    Command(
        "rerank",
        "encode:rerank",
        "documents by their relevance to a query",
        ('llmctl rerank reranker "what is a cat?" "An animal." "A car."', 'ls | llmctl rerank reranker "holiday"'),
        options.rerank,
    ),
    Command(
        "chat",
        "run:chat",
        "a conversation in the terminal",
        ("llmctl chat", 'llmctl chat light --system "Answer in one sentence."', "then: /help"),
        options.chat,
    ),
    Command(
        "bench",
        "bench:bench",
        "how fast a model reads and writes",
        ("llmctl bench light", "llmctl bench light -c 8 --json"),
        options.bench,
    ),
)

_DAEMON = (
    Command("health", "daemon:health", "is it well? (exit code 1: no)", ("llmctl health",)),
    Command(
        "port",
        "daemon:port",
        "the TCP port that it is bound to",
        ("curl http://127.0.0.1:$(llmctl port)/v1/models",),
    ),
    Command(
        "config",
        "config:config",
        "show, check, reload, set, path, init",
        (
            "llmctl config show --origin",
            "llmctl config check config.yaml",
            "llmctl config reload --wait",
            "llmctl config set models.light.n_ctx 16384",
            "llmctl config init",
        ),
        options.config,
    ),
    Command(
        "keys",
        "keys:keys",
        "API keys of the TCP port: list, add, revoke",
        (
            "llmctl keys add webapp",
            "llmctl keys add batch --models light,medium --rate 60/min --concurrent 2 --priority low --expires 90d",
            "llmctl keys revoke webapp",
        ),
        options.keys,
    ),
    Command(
        "doctor",
        "doctor:doctor",
        "look for what is wrong, and say how to mend it",
        ("llmctl doctor", "llmctl doctor --json"),
    ),
    Command(
        "service",
        "service:service",
        "run it under systemd or launchd: install, start, stop, status",
        (
            "llmctl service install --user",
            "llmctl service status --user",
            "llmctl service install --user --dry-run",
            "sudo llmctl service install",
        ),
        options.service,
    ),
    Command(
        "start",
        "start:start",
        "run it in the background, without a service manager",
        ("llmctl start", "llmctl start -- --config config.yaml --port auto"),
        options.start,
    ),
    Command("stop", "start:stop", "let running requests end, stop, and wait until it is gone", ("llmctl stop",)),
    Command(
        "restart-daemon",
        "daemon:restart_daemon",
        "run its program anew in place; models stay loaded",
        ("llmctl restart-daemon", "llmctl restart-daemon --within 300", "llmctl restart-daemon --within 5 --force"),
        options.restart_daemon,
    ),
    Command(
        "shutdown",
        "daemon:shutdown",
        "let running requests end, then stop",
        ("llmctl shutdown", "llmctl shutdown --wait"),
        options.shutdown,
    ),
)

_LLMCTL = (
    Command(
        "completion",
        "shell:completion",
        "the script that completes commands, models and jobs",
        (
            "source <(llmctl completion bash)",
            'llmctl completion zsh > "${fpath[1]}/_llmctl"',
            "llmctl completion fish > ~/.config/fish/completions/llmctl.fish",
        ),
        options.completion,
    ),
    Command("man", "shell:man", "the manual", ("llmctl man", "llmctl man > llmctl.1")),
)

COMMANDS: tuple[tuple[str, tuple[Command, ...]], ...] = (
    ("See", _SEE),
    ("Models", _MODELS),
    ("Talk", _TALK),
    ("Daemon", _DAEMON),
    ("llmctl itself", _LLMCTL),
)

EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "done"),
    (1, "failed"),
    (2, "usage"),
    (3, "the daemon is not running"),
    (4, "not found"),
    (5, "timeout"),
    (130, "interrupted"),
)
