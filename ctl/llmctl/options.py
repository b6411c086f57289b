"""The options of each command. A metavar says what a word means: completion offers models for MODEL, files for PATH."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmctl import limits

STATES = ("not_loaded", "loading", "loaded", "busy", "draining", "unloading", "error", "unavailable")
LEVELS = ("debug", "info", "warning", "error", "critical")
JOB_STATES = ("queued", "running", "cancelling", "cancelled", "succeeded", "failed")
JOB_TYPES = ("install", "import", "load", "unload", "update", "delete")
TIERS = ("light", "medium", "heavy", "embedding", "reranker")
TYPES = ("llm", "vlm", "embeddings", "reranker", "unknown")
SHELLS = ("bash", "zsh", "fish")
SCOPES = ("inference", "management")
PRIORITIES = ("low", "normal", "high")
GROUPS = ("model", "day", "service", "tier", "key")
Parser = argparse.ArgumentParser
_PER_MINUTE = {"s": 60.0, "min": 1.0, "m": 1.0, "h": 1 / 60, "d": 1 / 1440}
_SPANS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def common(parser: Parser) -> None:
    """What every command takes."""
    # Defaults are left out, so that an option before the command is not overwritten by the command's own parser.
    skip = argparse.SUPPRESS
    parser.add_argument("--json", action="store_true", default=skip, help="the API's own objects, for programs")
    parser.add_argument("--socket", type=Path, metavar="PATH", default=skip, help="else $LLMVISOR_SOCKET, else found")
    parser.add_argument(
        "--url", metavar="URL", default=skip, help="the TCP port instead (server.management): needs an API key"
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="PATH",
        default=skip,
        help="holds the key for --url; else $LLMVISOR_API_KEY",
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", default=skip, help="give up after this (exit code 5)"
    )


def nothing(parser: Parser) -> None:
    """No arguments of its own."""
    del parser


def status(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show this one in full")
    parser.add_argument("--watch", "-w", action="store_true", help="draw it again whenever something changes")


def one_model(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a tier, tier/name or an alias")


def models(parser: Parser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "rollback"),
        default="list",
        metavar="ACTION",
        help="list (the default), or rollback: back to the revision before the last update",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="for rollback")
    parser.add_argument("--type", choices=TYPES, metavar="TYPE", help=", ".join(TYPES))
    parser.add_argument("--state", choices=STATES, metavar="STATE", help=", ".join(STATES))
    parser.add_argument("--service", metavar="NAME", help="local, or an upstream service")
    parser.add_argument("--tier", choices=TIERS, metavar="TIER", help=", ".join(TIERS))
    parser.add_argument("--search", metavar="TEXT", help="part of a name")
    many = parser.add_mutually_exclusive_group()
    many.add_argument("--all", action="store_true", help="every one, on a terminal too")
    many.add_argument("--limit", type=_count, metavar="N", help="the first N (on a terminal: 50; in a pipe: every one)")
    _job_waiting(parser)


def waiting(parser: Parser) -> None:
    one_model(parser)
    _job_waiting(parser)


def unload(parser: Parser) -> None:
    waiting(parser)
    parser.add_argument("--force", action="store_true", help="do not wait for the requests that run")


def install(parser: Parser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="starter, hf:org/repo[:file], ollama:name[:tag]; without one, on a terminal: choose from a list",
    )
    _naming(parser)
    parser.add_argument("--quant", metavar="Q", help="which quantization, such as Q4_K_M (the default) or Q8_0")
    _job_waiting(parser)


def import_(parser: Parser) -> None:
    parser.add_argument("path", metavar="PATH", help="a GGUF file, or a folder with safetensors")
    taking = parser.add_mutually_exclusive_group()
    for mode, help in (
        ("copy", "leave the original where it is (the default)"),
        ("move", "take the original away"),
        ("link", "leave the files where they are, and use them there"),
    ):
        taking.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="copy", help=help)
    _naming(parser)
    _job_waiting(parser)


def update(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an installed model")
    parser.add_argument("--all", action="store_true", help="every installed model")
    _job_waiting(parser)


def delete(parser: Parser) -> None:
    one_model(parser)
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="also while it is in use")
    _job_waiting(parser)


def search(parser: Parser) -> None:
    parser.add_argument("text", nargs="+", metavar="TEXT", help="words to look for")
    parser.add_argument("--registry", choices=("huggingface", "ollama"), metavar="NAME", help="huggingface or ollama")
    parser.add_argument("--limit", type=_count, metavar="N", help="at most N")


def jobs(parser: Parser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "show", "watch", "cancel", "forget", "prune"),
        default="list",
        metavar="ACTION",
        help="list (the default), show, watch, cancel, forget (an ended one), prune (forget every ended one)",
    )
    parser.add_argument("id", nargs="*", metavar="ID", help="watch without an ID: every job that runs")
    parser.add_argument("--state", choices=JOB_STATES, metavar="STATE", help=", ".join(JOB_STATES))
    parser.add_argument("--type", choices=JOB_TYPES, metavar="TYPE", help=", ".join(JOB_TYPES))
    parser.add_argument("--model", metavar="MODEL", help="those of this model")
    parser.add_argument("--cancel-on-interrupt", action="store_true", help="watch: Ctrl-C cancels the jobs too")


def keys(parser: Parser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "add", "revoke"),
        default="list",
        metavar="ACTION",
        help="list (the default), add (the key is shown this once), revoke",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="for add and revoke: what the key is called")
    parser.add_argument(
        "--scope", action="append", choices=SCOPES, metavar="SCOPE", help="add: inference (the default), management"
    )
    parser.add_argument("--models", metavar="MODELS", help="add: these alone, with commas: names, aliases or tiers")
    parser.add_argument("--rate", type=_rate, metavar="N/min", help="add: requests in a minute (60/min, 1/s, 500/h)")
    parser.add_argument("--concurrent", type=_count, metavar="N", help="add: requests at the same time")
    parser.add_argument("--priority", choices=PRIORITIES, metavar="P", help="add: the highest it may ask for")
    parser.add_argument("--expires", type=_span, metavar="SPAN", help="add: good for so long: 90d, 12h, 30m, 3600")
    parser.add_argument(
        "--open", action="store_true", dest="ask_no_more", help="revoke: if it was the last, ask for no key any more"
    )


def run(parser: Parser) -> None:
    one_model(parser)
    parser.add_argument(
        "prompt", nargs="*", metavar="PROMPT", help="`-` is standard input; so is no prompt, when something is piped in"
    )
    _sampling(parser)


def chat(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="without one: the first that is loaded")
    _sampling(parser)


def embed(parser: Parser) -> None:
    one_model(parser)
    parser.add_argument("text", nargs="*", metavar="TEXT", help="each one text; without any: the lines piped in")
    parser.add_argument("--dimensions", type=_count, metavar="N", help="cut the vectors to N numbers")


def rerank(parser: Parser) -> None:
    one_model(parser)
    parser.add_argument("query", metavar="QUERY")
    parser.add_argument("document", nargs="*", metavar="DOCUMENT", help="without any: the lines piped in")
    parser.add_argument("--top", type=_count, metavar="N", help="the N most relevant alone")


def bench(parser: Parser) -> None:
    one_model(parser)
    parser.add_argument(
        "-c", "--concurrency", type=_concurrency, metavar="N", default=4, help="up to N requests at once (4): 1, 2, 4 …"
    )
    parser.add_argument("--prompt-tokens", type=_count, metavar="N", default=512, help="of each prompt, about (512)")
    parser.add_argument("--max-tokens", type=_count, metavar="N", default=64, help="of each answer (64)")


def logs(parser: Parser) -> None:
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what comes")
    parser.add_argument("--model", "-m", metavar="MODEL", help="what this model's worker says, and what is said of it")
    parser.add_argument("--level", "-l", choices=LEVELS, metavar="LEVEL", help="this level and above")


def postmortem(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the crashes of this model, the newest in full")
    parser.add_argument("--number", "-n", type=_count, metavar="N", help="show the Nth newest in full (1)")


def cache(parser: Parser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("stats", "clear"),
        default="stats",
        metavar="ACTION",
        help="stats (the default), or clear: forget every answer",
    )


def usage(parser: Parser) -> None:
    parser.add_argument(
        "--by", type=_groups, metavar="WORDS", default="model", help=f"of {', '.join(GROUPS)}, with commas (model)"
    )
    parser.add_argument("--since", type=_day, metavar="DAY", help="such as 2026-01-31, in UTC; else from the beginning")


def config(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="the values in effect", description="The values in effect, from the daemon.")
    show.add_argument("--origin", action="store_true", help="and who set each: layer, file and line")
    check = actions.add_parser(
        "check", help="tell every mistake of a file", description="Tell every mistake of a file."
    )
    check.add_argument("file", nargs="?", metavar="FILE", help="without one: the file that llmvisor would take")
    set_ = actions.add_parser(
        "set",
        help="change one value in the file",
        description="Change one value in the file: the rest, comments too, stays as it is. What is wrong is refused.",
    )
    set_.add_argument("key", metavar="KEY", help='such as server.port or models."qwen2.5".n_ctx')
    set_.add_argument("value", metavar="VALUE", help="as it would stand in the file: 8080, [a, b], null, a text")
    set_.add_argument("--file", metavar="FILE", help="else the daemon's, else the one that llmvisor would take")
    reload = actions.add_parser(
        "reload",
        help="have the daemon read it now",
        description="Have the daemon read its configuration now. It does so by itself, too, when a file changes.",
    )
    reload.add_argument("--wait", action="store_true", help="until every model runs as it is configured")
    path = actions.add_parser(
        "path", help="which file is taken", description="Which configuration file llmvisor takes."
    )
    init = actions.add_parser("init", help="write a first file", description="Write a first configuration file.")
    init.add_argument("file", nargs="?", metavar="FILE")
    for action in (show, check, reload, set_, path, init):
        common(action)


def service(parser: Parser) -> None:
    parser.add_argument(
        "action",
        choices=("install", "uninstall", "start", "stop", "status"),
        metavar="ACTION",
        help="install, uninstall, start, stop or status",
    )
    parser.add_argument("--user", action="store_true", help="for yourself alone, without root")
    parser.add_argument("--dry-run", action="store_true", help="print the files and commands, and do nothing")
    parser.add_argument("--program", metavar="PATH", help="install: the daemon's program, else the one of this llmctl")


def start(parser: Parser) -> None:
    parser.add_argument(
        "option", nargs="*", metavar="OPTION", help="for the daemon, after `--`: llmctl start -- --port auto"
    )


def shutdown(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="until the daemon is gone")


def restart_daemon(parser: Parser) -> None:
    parser.add_argument(
        "--within",
        type=_seconds,
        metavar="SECONDS",
        help="how long requests that run may take to finish, before it is given up (default server.upgrade_timeout)",
    )
    parser.add_argument(
        "--force", action="store_true", help="end what still runs then with an error, rather than give up"
    )
    parser.add_argument("--no-wait", dest="wait", action="store_false", help="return once it has begun")


def completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _job_waiting(parser: Parser) -> None:
    wait = parser.add_mutually_exclusive_group()
    wait.add_argument("--wait", dest="wait", action="store_true", default=True, help="until it is done (the default)")
    wait.add_argument("--no-wait", dest="wait", action="store_false", help="print the job and return at once")
    parser.add_argument("--cancel-on-interrupt", action="store_true", help="Ctrl-C cancels the job too")


def _naming(parser: Parser) -> None:
    parser.add_argument("--name", metavar="NAME", help="what to call the model, else by its source")
    parser.add_argument("--tier", choices=TIERS, metavar="TIER", help=", ".join(TIERS))


def _sampling(parser: Parser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 to 2; 0 takes the likeliest token")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of the answer, at most")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer")
    parser.add_argument("--stats", action="store_true", help="tokens and speed after each answer, on stderr")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _rate(text: str) -> float:
    """Requests in a minute."""
    number, _, unit = text.partition("/")
    value = float(number) * _PER_MINUTE.get(unit or "min", 0.0)
    if not 0 < value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is no rate such as 60/min, 1/s or 500/h")
    return value


def _span(text: str) -> float:
    """Seconds."""
    unit = text[-1:] if text[-1:] in _SPANS else ""
    value = float(text.removesuffix(unit)) * _SPANS[unit or "s"]
    if not 0 < value < limits.key_seconds_max:
        raise argparse.ArgumentTypeError(f"{text} is no span of time such as 90d, 12h, 30m or 3600")
    return value


def _concurrency(text: str) -> int:
    value = _count(text)
    if value > limits.bench_requests_max:
        raise argparse.ArgumentTypeError(f"{text} is more than {limits.bench_requests_max}")
    return value


def _day(text: str) -> str:
    from datetime import date  # noqa: PLC0415 - for this one option

    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day such as 2026-01-31") from None


def _groups(text: str) -> str:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in GROUPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return ",".join(dict.fromkeys(words))
