"""Images, sounds and projectors that cannot be used: each is refused with its reason, and the worker goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.llama_driver import LlamaDriver, llama_driver
from tests.support.media_driver import ask, media_files, raw, seeing
from tests.support.tiny_gguf import BOS, byte_tokens
from tests.support.tiny_mmproj import IMAGE_TOKENS, png, png_of, seen, wav, write_tiny_mmproj

from llmvisor_runtimes import limits
from llmvisor_runtimes.backend import LoadError, RequestError
from llmvisor_runtimes.protocol import ChatMessage, ChatPrompt


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return media_files(tmp_path_factory.mktemp("models"))


@pytest.fixture
def driver(files: dict[str, Path]) -> Iterator[LlamaDriver]:
    made = seeing(files, idle_cache_mb=0)
    yield made
    made.close()


def refusal(driver: LlamaDriver, conversation: ChatPrompt) -> RequestError:
    with pytest.raises(RequestError) as caught:
        driver.converse(conversation, max_tokens=4)
    assert len(driver.generate([BOS, *byte_tokens("abc")], max_tokens=4, ignore_eos=True).tokens) == 4
    return caught.value


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
def test_cut_image_is_refused_and_nothing_else_suffers(driver: LlamaDriver, part: float) -> None:
    """Its header is whole, the rest is not: an error that names it, and the worker goes on."""
    image = png(1, width=200, height=200)
    error = refusal(driver, seen("* and *", png(2), image[: int(len(image) * part)]))
    assert error.kind == "invalid_value"
    assert "image 2 of the conversation cannot be decoded" in error.message


@pytest.mark.parametrize("file", [b"RIFF\x10\0\0\0WEBPVP8 " + bytes(40), b"\0" * 100, b"x", b"GIF89a" + bytes(30)])
def test_file_that_is_no_image_is_refused(driver: LlamaDriver, file: bytes) -> None:
    """Formats that libmtmd does not read itself start no program, either."""
    assert "cannot be decoded" in refusal(driver, seen("*", file)).message


def test_image_that_unpacks_to_more_than_its_pixels_is_refused(driver: LlamaDriver) -> None:
    """A small file of eight by eight pixels would take gigabytes."""
    assert "cannot be decoded" in refusal(driver, seen("*", png_of(8, 8, bytes(30_000_000)))).message


def test_sound_is_refused_where_the_mmproj_only_sees(driver: LlamaDriver) -> None:
    """The message says what the model can do."""
    error = refusal(driver, seen("*", wav(1)))
    assert error.kind == "unsupported_operation"
    assert "sees images but hears no sounds" in error.message


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(wav(1, samples=10), id="too short"),
        pytest.param(b"fLaC\0\0\0\x22" + bytes(10) + b"\x0a\xc4\x40\xff" + b"\xff" * 4 + bytes(40), id="a day of FLAC"),
        pytest.param(wav(1)[:24] + b"\1\0\0\0" + wav(1)[28:], id="one sample a second"),
        pytest.param(wav(1)[:24] + b"\1\0\0\0" + wav(1)[28:32] + b"\xff\xff\x08\0" + wav(1)[36:], id="a frame of lies"),
        pytest.param(wav(1)[:36] + b"junk", id="no samples"),
        pytest.param(
            (b"\xff\xfb\x90\x00" + bytes(32) + b"Xing\0\0\0\1\0\x3f\xff\xff").ljust(417, b"\0")
            + (b"\xff\xfb\x90\x00" + bytes(413)) * 20,
            id="a day of MP3 by its tag",
        ),
        pytest.param(
            b"ID3\4\0\0\0\0\0\4\xff\xfb\x90\x00fLaC\x80\0\0\x22" + bytes(10) + b"\x0a\xc4\x40\xff" + b"\xff" * 60,
            id="a day of FLAC behind a tag",
        ),
        pytest.param(b"ID3\4\0\0\0\0\0\0" + bytes(200), id="no MP3"),
    ],
)
def test_sound_that_cannot_be_heard_is_refused(files: dict[str, Path], sound: bytes) -> None:
    """Too short, too long or cut: an error, and the worker goes on."""
    driver = seeing(files, "ultravox")
    try:
        assert refusal(driver, seen("*", sound)).kind == "invalid_value"
        assert "hears sounds but sees no images" in refusal(driver, seen("*", png(1))).message
        assert len(ask(driver, seen("*", wav(1))).tokens) == 8
    finally:
        driver.close()


def test_sounds_are_bounded_together(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a conversation are unpacked at once: two of half a second are a second."""
    monkeypatch.setattr(limits, "sounds_seconds_max", 0.9)
    driver = seeing(files, "ultravox")
    try:
        assert "together" in refusal(driver, seen("* *", wav(1), wav(2))).message
        assert len(ask(driver, seen("*", wav(1))).tokens) == 8
    finally:
        driver.close()


def test_model_without_an_mmproj_names_the_option(files: dict[str, Path]) -> None:
    """What to do about it stands in the error."""
    with llama_driver(files["tiny"]) as driver:
        assert "vision" not in driver.info.capabilities
        error = refusal(driver, seen("*", png(1)))
    assert error.kind == "unsupported_operation"
    assert "mmproj" in error.message


def test_images_beyond_the_context_are_the_usual_error(driver: LlamaDriver) -> None:
    """Forty images are more than 512 tokens."""
    error = refusal(driver, seen("*" * 40, *[png(1)] * 40))
    assert error.kind == "context_length_exceeded"


def test_image_that_must_be_computed_at_once_needs_a_batch_as_large(files: dict[str, Path]) -> None:
    """llama.cpp would end the process; the error names both options."""
    driver = seeing(files, "gemma3", n_ubatch=IMAGE_TOKENS - 1)
    try:
        error = refusal(driver, seen("*", png(1)))
    finally:
        driver.close()
    assert error.kind == "unsupported_operation"
    assert "n_ubatch" in error.message


def test_mmproj_of_a_model_with_other_tokens_is_told(files: dict[str, Path]) -> None:
    """Its embeddings fit, but the tokens that it puts around images are not there."""
    with llama_driver(files["tiny"], options=raw(mmproj=str(files["idefics3"]))) as driver:
        error = refusal(driver, seen("*", png(1)))
    assert error.kind == "unsupported_operation"
    assert "tokens that this model does not have" in error.message


def test_template_that_drops_an_image_is_told(files: dict[str, Path]) -> None:
    """No image is lost in silence."""
    driver = seeing(files, chat_template="{{ messages[-1].content }}")
    try:
        turns = [*seen("*", png(1)).messages, ChatMessage("assistant", "yes"), ChatMessage("user", "why?")]
        error = refusal(driver, ChatPrompt(turns))
    finally:
        driver.close()
    assert error.kind == "template_error"
    assert "0 of 1" in error.message


def test_prompt_with_an_image_is_not_echoed(driver: LlamaDriver) -> None:
    """There is no text to show."""
    with pytest.raises(RequestError) as caught:
        driver.converse(seen("*", png(1)), echo=True)
    assert caught.value.param == "echo"


def test_numbers_of_images_are_no_tokens_of_clients(driver: LlamaDriver) -> None:
    """They come from this process's prompts alone."""
    tokens = driver.backend.tokenize(seen("*", png(1)), add_special=True, parse_special=True)
    with pytest.raises(RequestError, match="is not in the vocabulary"):
        driver.submit(list(tokens))


def load_error(files: dict[str, Path], mmproj: Path) -> LoadError:
    with pytest.raises(LoadError) as caught, llama_driver(files["tiny"], options=raw(mmproj=str(mmproj))):
        pass
    return caught.value


def test_mmproj_that_is_none_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    """Absent, of another kind, a model instead, cut: a permanent error that names the file."""
    absent = tmp_path / "absent.gguf"
    zipped = tmp_path / "zipped.gguf"
    zipped.write_bytes(b"PK\3\4" + bytes(100))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(files["janus_pro"].read_bytes()[:4000])
    for path, reason in ((absent, "is no file"), (zipped, "not a GGUF"), (files["tiny"], "cannot be used"), (cut, "")):
        error = load_error(files, path)
        assert error.permanent
        assert "mmproj" in error.reason
        assert path.name in error.reason
        assert reason in error.reason


def test_model_without_a_template_loads_without_its_mmproj(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing says where images stand, and texts are served all the same; the log has the reason."""
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(files["tiny"].read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templace"))
    with llama_driver(plain, options=raw(mmproj=str(files["janus_pro"]))) as driver:
        assert "vision" not in driver.info.capabilities
        assert len(driver.generate([BOS, *byte_tokens("abc")], max_tokens=4, ignore_eos=True).tokens) == 4
    assert "the mmproj is not loaded" in capfd.readouterr().err


def test_mmproj_of_another_model_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    """Both sizes stand in the reason."""
    error = load_error(files, write_tiny_mmproj(tmp_path / "wide.gguf", dims=128))
    assert error.permanent
    assert "n_embd = 64" in error.reason
    assert "n_embd = 128" in error.reason
