"""`llmvisor`: the daemon in the foreground. `llmvisor config …`: its configuration, without it."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llmvisor import __version__
from llmvisor.clock import SystemClock
from llmvisor.config.layers import LoadedConfig
from llmvisor.config.source import ConfigSource
from llmvisor.errors import ConfigError, StartError
from llmvisor.log import configure_logging, get_logger

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: starting again without a change is of no use."""
EXIT_BUG = 70

_EPILOG = """\
examples:
  llmvisor                                  serve what config.yaml says; the starter model without one
  llmvisor --config /etc/llmvisor.yaml      take this file
  llmvisor --port auto                      take a free port; .port tells which
  llmvisor --set models.light.n_ctx=4096    set any key of the configuration
  llmvisor config check                     say what is wrong with the configuration
  llmvisor config show --origin             print every value and who set it

The daemon stays in the foreground. `llmctl status` shows what it does, `llmctl shutdown` or Ctrl-C ends it.
"""


def main() -> None:
    """Run the daemon, and exit: 0 ended as asked, 1 cannot start, 70 a bug of ours, 78 wrong configuration."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["config"]:
        from llmvisor.config.command import run  # noqa: PLC0415 - the daemon itself does not need it

        sys.exit(run(arguments[1:]))
    sys.exit(_serve(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmvisor",
        description="Keeps language models running: one supervised worker per model behind one OpenAI-compatible port.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="the configuration file (default: the first that is found)")
    parser.add_argument("--host", help="the address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="the port to listen on, or `auto` (default 8000)")
    parser.add_argument("--port-file", metavar="FILE", help="where the bound port is written (default .port)")
    parser.add_argument("--socket", metavar="FILE", help="the control socket that llmctl talks to")
    parser.add_argument("--log-level", metavar="LEVEL", help="what the console shows: debug, info, warning, error")
    parser.add_argument("--log-file", metavar="FILE", help="the log file")
    parser.add_argument("--log-format", choices=["text", "json"], help="how lines of the log are written")
    parser.add_argument("--memory-limit", metavar="SIZE", help="for all workers together: 80%%, 16GiB")
    parser.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[], help="set any key, such as models.light.n_ctx=4096"
    )
    parser.add_argument(
        "--insecure-no-auth", action="store_true", help="listen on a public address although no API key is asked for"
    )
    parser.add_argument("--version", action="version", version=f"llmvisor {__version__}")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    flags: dict[str, object] = {name: value for name, value in vars(arguments).items() if name != "set"}
    given: Sequence[str] = arguments.set
    for assignment in given:
        path, equals, value = assignment.partition("=")
        if not equals:
            print(f"llmvisor: --set takes PATH=VALUE, not {assignment!r}", file=sys.stderr)
            return 2
        flags[path] = value
    source = ConfigSource(flags=flags, environ=os.environ, cwd=Path.cwd())
    try:
        loaded = source.load()
    except ConfigError as error:
        print("llmvisor: the configuration cannot be used:", file=sys.stderr)
        for problem in error.problems:
            print(f"  {problem}", file=sys.stderr)
        return EXIT_CONFIG
    return _run(loaded, source)


def _run(loaded: LoadedConfig, source: ConfigSource) -> int:
    # What is imported stays for good: to look for garbage in it costs a part of the start, and of every later look.
    gc.disable()
    import asyncio  # noqa: PLC0415 - `--help` and wrong configuration answer without these

    import uvloop  # noqa: PLC0415

    from llmvisor.app import App  # noqa: PLC0415
    from llmvisor.service_manager import take_service_manager  # noqa: PLC0415
    from llmvisor.upgrade.inherit import answer_preflight, inherit, is_preflight, start_with_nothing  # noqa: PLC0415

    if is_preflight(os.environ):
        return answer_preflight(os.environ, loaded.config)
    gc.freeze()
    gc.enable()
    environment = dict(os.environ)
    inherited = inherit(os.environ)
    clock = SystemClock()
    logs = configure_logging(loaded.config.logging.main, clock=clock)
    log = get_logger(__name__)
    for warning in loaded.warnings:
        log.warning(warning)
    if loaded.unused:
        log.debug("environment variables that this version does not use", names=", ".join(loaded.unused))

    app: App | None = None

    async def serve() -> None:
        nonlocal app
        manager = take_service_manager(os.environ, clock=clock)
        app = App(loaded, source=source, logs=logs, clock=clock, manager=manager, inherited=inherited)
        await app.run()

    code, problem = 0, ""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except StartError as error:
        print(f"llmvisor: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        code, problem = error.exit_code, error.message
    except Exception as error:
        log.critical("the daemon died by a bug of ours", exc_info=True)
        code, problem = EXIT_BUG, f"a bug of ours: {error!r}"
    finally:
        logs.close()
    if code and inherited.envelope is not None and not (app is not None and app.was_ready):
        start_with_nothing(environment, problem)
    return code


if __name__ == "__main__":
    main()
