"""Frames: what was encoded comes out whole however it is cut, and wrong bytes are one `ProtocolViolation`."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmvisor_runtimes import limits
from llmvisor_runtimes.framing import COMMAND_DECODER, REPORT_DECODER, FrameReader, encode
from llmvisor_runtimes.malformed import CUT, SEEDS
from llmvisor_runtimes.protocol import (
    ApplyTemplate,
    Cancel,
    ChatMessage,
    ChatPrompt,
    Close,
    Command,
    Delta,
    Detokenize,
    Done,
    Failed,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Memory,
    ModelInfo,
    ModelOptions,
    Pause,
    ProtocolViolation,
    Report,
    Resume,
    Sampling,
    Step,
    Text,
    TextPrompt,
    Tick,
    Tokenize,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    TopLogprob,
)

CHAT = ChatPrompt(
    [ChatMessage("system", "be brief"), ChatMessage("user", "où?", name="eve")], template_kwargs=b'{"a":1}'
)
COMMANDS: list[Command] = [
    Load("m", "/models/m.gguf", ModelOptions(parallel=8, options={"a": msgspec.Raw(msgspec.msgpack.encode([1]))})),
    Generate(1, "req-1", CHAT, Sampling(temperature=0, seed=2**63, logit_bias={5: -1.5}), n=2, stop=["\n"], logprobs=0),
    Generate(2, "req-2", TokenPrompt([1, 2, 3]), Sampling()),
    Cancel(1),
    Pause(2),
    Resume(2),
    Tokenize(3, TextPrompt("a"), add_special=False),
    Detokenize(4, [0, 255]),
    ApplyTemplate(5, CHAT),
    Close(),
]
INFO = ModelInfo("llama", 7, "Q4_0", 8, 8, 1, 9, ["chat"], Memory(1, 2, 3), 0.5, "mock", "1")
REPORTS: list[Report] = [
    Hello(1, "mock", "0.1", 77),
    LoadProgress("weights", 3, 0, "bytes"),
    Loaded(INFO),
    LoadFailed("no such file", permanent=True),
    Step([Delta(1, 0, "é", [256], "stop", [TokenLogprob(256, b"\xc3", None, [TopLogprob(1, b"a", -0.1)])])]),
    Step([Delta(1, 1, "", [])], [Done(1, 2, 0, 1, 0.5, 0.25)]),
    Failed(1, "invalid_value", "no", "n"),
    Tokens(3, [97], [b"a"]),
    Text(4, "a"),
    Tick(9, "decode", 1, 2, 3, 4),
]


def read_commands(data: bytes) -> list[Command]:
    """The commands of a whole stream."""
    reader = FrameReader(COMMAND_DECODER)
    commands = list(reader.feed(data))
    reader.close()
    return commands


def read_reports(data: bytes) -> list[Report]:
    """The reports of a whole stream."""
    reader = FrameReader(REPORT_DECODER)
    reports = list(reader.feed(data))
    reader.close()
    return reports


def test_every_frame_comes_out_as_it_went_in() -> None:
    """Each kind of command and report survives encoding, one after the other in one stream."""
    assert read_commands(b"".join(map(encode, COMMANDS))) == COMMANDS
    assert read_reports(b"".join(map(encode, REPORTS))) == REPORTS


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_frames_do_not_depend_on_how_reads_cut_them(sizes: list[int]) -> None:
    """Whatever the sizes of the reads, the same reports come out in the same order."""
    data = b"".join(map(encode, REPORTS))
    reader = FrameReader(REPORT_DECODER)
    found: list[Report] = []
    at = 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        found.extend(reader.feed(data[at : at + size]))
        at += size
    reader.close()
    assert found == REPORTS


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("read", [read_commands, read_reports])
def test_malformed_frame_is_one_protocol_violation(name: str, read: type) -> None:
    """Each seed of malformed bytes is a `ProtocolViolation` for the daemon and for a worker, nothing else."""
    with pytest.raises(ProtocolViolation):
        read(SEEDS[name])


def test_there_are_at_least_25_malformed_seeds() -> None:
    """The seeds cover lengths, values, fields, bytes and bombs."""
    assert len(SEEDS) >= 25
    assert set(SEEDS) >= CUT


@pytest.mark.parametrize("name", sorted(CUT))
def test_cut_frame_is_a_violation_only_once_the_stream_ends(name: str) -> None:
    """A frame that is not whole yet waits for the rest: only the end of the stream makes it wrong."""
    reader = FrameReader(REPORT_DECODER)
    assert list(reader.feed(SEEDS[name])) == []
    with pytest.raises(ProtocolViolation, match="ended"):
        reader.close()


@pytest.mark.parametrize("name", sorted(set(SEEDS) - CUT))
def test_frames_before_a_malformed_one_are_still_read(name: str) -> None:
    """What came whole before the violation is given out."""
    reports = FrameReader(REPORT_DECODER).feed(encode(REPORTS[0]) + SEEDS[name])
    assert next(reports) == REPORTS[0]
    with pytest.raises(ProtocolViolation):
        next(reports)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_frame_is_a_frame_or_a_protocol_violation(data: st.DataObject) -> None:
    """Bytes changed, cut out or put in anywhere: frames come out, or one `ProtocolViolation`, nothing else."""
    stream = bytearray(b"".join(map(encode, data.draw(st.lists(st.sampled_from([*REPORTS, *COMMANDS]), min_size=1)))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    for read in (read_commands, read_reports):
        with contextlib.suppress(ProtocolViolation):
            read(bytes(stream))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_body_is_a_frame_or_a_protocol_violation(body: bytes) -> None:
    """A frame of random bytes decodes or is a `ProtocolViolation`."""
    for read in (read_commands, read_reports):
        with contextlib.suppress(ProtocolViolation):
            read(struct.pack("<I", len(body)) + body)


@pytest.mark.parametrize("name", [name for name in SEEDS if "bomb" in name or "length" in name or name == "oversize"])
def test_length_bomb_takes_no_memory(name: str) -> None:
    """A length that claims gigabytes makes the reader set nothing aside."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolViolation):
            read_reports(SEEDS[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1024 * 1024


def test_reader_keeps_nothing_of_the_frames_it_gave() -> None:
    """A long stream of frames leaves no more behind than the piece that is not whole yet."""
    frame = encode(Text(1, "x" * 10_000))
    reader = FrameReader(REPORT_DECODER)
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert len(list(reader.feed(frame))) == 1
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 100_000


def test_frame_of_the_longest_length_passes_and_one_more_byte_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """`frame_bytes_max` itself is allowed in both directions; the next length is refused in both."""
    frame = encode(Text(1, "x" * 1000))
    monkeypatch.setattr(limits, "frame_bytes_max", len(frame) - 4)
    assert read_reports(encode(Text(1, "x" * 1000))) == [Text(1, "x" * 1000)]
    with pytest.raises(ValueError, match="over the bound"):
        encode(Text(1, "x" * 1001))
    monkeypatch.setattr(limits, "frame_bytes_max", len(frame) - 5)
    with pytest.raises(ProtocolViolation, match="over the bound"):
        read_reports(frame)


def test_lone_surrogate_is_refused_before_it_is_sent() -> None:
    """Text that is no Unicode raises where it is encoded, so that no half frame reaches a pipe."""
    with pytest.raises(UnicodeEncodeError):
        encode(Text(1, "\ud800"))
