"""A worker that behaves as $BEHAVIOUR says: well, badly, or not at all.

It takes a worker's command line and speaks the frames, without a host or a backend in between, so that tests of the
daemon's side can have a peer that breaks every rule.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import NoReturn

from llmvisor_runtimes.framing import COMMAND_DECODER, FrameReader, encode
from llmvisor_runtimes.protocol import PROTOCOL_VERSION, Close, Detokenize, Hello, Text, Tick

HELLO = encode(Hello(PROTOCOL_VERSION, "scripted", "1", os.getpid()))
TICK = encode(Tick(step=1, phase="idle", active=0, waiting=0, tokens=0, rss_bytes=1))
NEVER_SECONDS = 1000.0


def option(name: str) -> int:
    return int(sys.argv[sys.argv.index(name) + 1])


READ_FD = option("--read-fd")
WRITE_FD = option("--write-fd")


def write(data: bytes) -> None:
    while data:
        data = data[os.write(WRITE_FD, data) :]


def say(text: str) -> None:
    """Tell the test something, as a report."""
    write(encode(Text(0, text)))


def serve() -> None:
    """Answer each Detokenize by its own tokens, until Close."""
    reader = FrameReader(COMMAND_DECODER)
    while data := os.read(READ_FD, 65536):
        for command in reader.feed(data):
            if isinstance(command, Close):
                print("closing")
                sys.exit(0)
            if isinstance(command, Detokenize):
                write(encode(Text(command.id, str(command.tokens))))
    sys.exit(7)


def hang() -> NoReturn:
    while True:
        time.sleep(NEVER_SECONDS)


def start_children(*, detached: list[bool]) -> None:
    """Start children that hold stdout, in the worker's group or out of it, and tell their pids."""
    sleep = ["sleep", str(NEVER_SECONDS)]
    say(" ".join(str(subprocess.Popen(sleep, start_new_session=out).pid) for out in detached))


def serve_aloud(_: str) -> None:
    print("ready")
    print("warned", file=sys.stderr)
    serve()


def tell_descriptors(_: str) -> None:
    """What each open descriptor is; the listing's own is closed by then."""
    kinds: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            kinds.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    say("\n".join(kinds))
    serve()


def exit_with(code: str) -> None:
    print("leaving")
    sys.exit(int(code))


def die_by(number: str) -> None:
    print("dying", flush=True)
    os.kill(os.getpid(), int(number))


def write_and_hang(data: str) -> None:
    write(bytes.fromhex(data))
    hang()


def write_and_exit(data: str) -> None:
    write(bytes.fromhex(data))
    sys.exit(0)


def tick_and_hang(_: str) -> None:
    write(TICK)
    hang()


def close_and_hang(_: str) -> None:
    os.close(WRITE_FD)
    hang()


def ignore_and_hang(names: str) -> None:
    for name in names.split():
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    say("ignoring")
    hang()


def hang_with_traceback(_: str) -> None:
    faulthandler.enable()
    say("hanging")
    hang()


def serve_with_child(_: str) -> None:
    start_children(detached=[False])
    serve()


def exit_leaving_child(how: str) -> None:
    start_children(detached={"": [False], "detached": [True], "and detached": [False, True]}[how])
    sys.exit(0)


def print_lines(count_and_end: str) -> None:
    count, _, end = count_and_end.partition(" ")
    sys.stdout.write("".join(f"line {number}\n" for number in range(int(count))))
    sys.stdout.flush()
    say("written")
    if not end:
        serve()


def flood(_: str) -> NoReturn:
    while True:
        os.write(1, b"flood\n" * 10_000)


def print_one_line(megabytes: str) -> None:
    for _ in range(int(megabytes)):
        os.write(1, b"x" * 1024 * 1024)
    say("written")
    serve()


def serve_in_halves(_: str) -> None:
    """As `serve_aloud`, but between two answers there is always a half report and a half line in the pipes."""
    half = len(TICK) // 2
    reader, begun = FrameReader(COMMAND_DECODER), False
    while data := os.read(READ_FD, 65536):
        for command in reader.feed(data):
            if isinstance(command, Close):
                os.write(1, b"and the end\n")
                sys.exit(0)
            if isinstance(command, Detokenize):
                write((TICK[half:] if begun else b"") + encode(Text(command.id, str(command.tokens))) + TICK[:half])
                os.write(1, b"" if begun else b"a beginning ")
                begun = True


BEHAVIOURS = {
    "serve": serve_aloud,
    "halves": serve_in_halves,
    "descriptors": tell_descriptors,
    "exit": exit_with,
    "die": die_by,
    "write": write_and_hang,
    "write-exit": write_and_exit,
    "no-hello": tick_and_hang,
    "mute": close_and_hang,
    "ignore": ignore_and_hang,
    "traceback": hang_with_traceback,
    "child": serve_with_child,
    "leave-child": exit_leaving_child,
    "lines": print_lines,
    "flood": flood,
    "one-line": print_one_line,
}


def main() -> None:
    verb, _, argument = os.environ["BEHAVIOUR"].partition(" ")
    if verb != "no-hello":
        write(HELLO)
    BEHAVIOURS[verb](argument)


if __name__ == "__main__":
    main()
