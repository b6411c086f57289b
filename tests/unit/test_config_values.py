"""Values at the bounds of their keys, and past them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect
from tests.support.configuration import Configured

from llmvisor import limits
from llmvisor.config import schema
from llmvisor.config.origins import Path as KeyPath
from llmvisor.config.tree import ModelConfig, parse_memory
from llmvisor.config.values import Given, WrongValue, allowed, convert
from llmvisor_runtimes.protocol import Sampling


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def every_leaf(place: schema.Place = schema.ROOT, path: KeyPath = ()) -> Iterator[tuple[KeyPath, inspect.Type]]:
    """Every key of the tree with its type; `m` stands for a name."""
    if place.kind == "leaf":
        yield path, place.type
        return
    for key in schema.keys(place) or ["m"]:
        below = schema.below(place, key)
        assert below is not None
        yield from every_leaf(below, (*path, key))


def bare(kind: inspect.Type) -> inspect.Type:
    """Without the notes beside it and without null."""
    if isinstance(kind, inspect.Metadata):
        return bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        return bare(next(member for member in kind.types if not isinstance(member, inspect.NoneType)))
    return kind


LEAVES = list(every_leaf())
NUMBERS = [(path, kind) for path, kind in LEAVES if isinstance(bare(kind), (inspect.IntType, inspect.FloatType))]
ids = [".".join(path) for path, _ in NUMBERS]


def test_values_every_number_and_text_of_the_tree_is_bounded() -> None:
    """No number goes without a lower and an upper bound, no text without a length or a form."""
    assert len(NUMBERS) >= 25
    for path, kind in LEAVES:
        inner = bare(kind)
        if isinstance(inner, (inspect.IntType, inspect.FloatType)):
            assert inner.le is not None, path
            assert inner.ge is not None or inner.gt is not None, path
        elif isinstance(inner, inspect.StrType):
            form = isinstance(kind, inspect.Metadata) and "form" in repr(kind)
            assert inner.max_length is not None or inner.pattern is not None or form, path


@pytest.mark.parametrize(("path", "kind"), NUMBERS, ids=ids)
def test_values_number_at_its_bounds_and_past_them(path: KeyPath, kind: inspect.Type) -> None:
    """Each number takes its lowest and highest value, and the next one beyond is refused with both bounds named."""
    inner = bare(kind)
    assert isinstance(inner, (inspect.IntType, inspect.FloatType))
    step = 1 if isinstance(inner, inspect.IntType) else 0.001
    low = inner.ge if inner.ge is not None else (inner.gt or 0) + step
    high = inner.le
    assert low is not None
    assert high is not None
    assert convert(Given(low), kind) == low
    assert convert(Given(high), kind) == high
    assert convert(Given(str(high), textual=True), kind) == high
    for beyond in (low - step, high + step):
        with pytest.raises(WrongValue) as caught:
            convert(Given(beyond), kind)
        assert f"to {high:g}" in caught.value.allowed.replace(str(int(high)), f"{high:g}")
    for wrong in ("lots", True, None, [low], {"a": 1}, float("nan"), float("inf"), "", "1 2"):
        if wrong is None and "null" in allowed(kind):
            continue
        with pytest.raises(WrongValue):
            convert(Given(wrong), kind)


@pytest.mark.parametrize(("path", "kind"), LEAVES, ids=[".".join(path) for path, _ in LEAVES])
def test_values_every_key_says_what_it_takes(path: KeyPath, kind: inspect.Type) -> None:
    """A value of a foreign type is refused with a sentence on what is allowed, whatever the key."""
    if path == ("models", "m", "options", "m"):
        assert convert(Given({"a": [1]}), kind) == {"a": [1]}
        return
    with pytest.raises(WrongValue) as caught:
        convert(Given({"a": {"b": 1}}), kind)
    assert len(caught.value.allowed) > 5
    assert "<" not in caught.value.allowed


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("YES", True),
        ("on", True),
        ("1", True),
        ("false", False),
        ("No", False),
        ("off", False),
        ("0", False),
    ],
)
def test_values_booleans_of_the_environment(at: Configured, text: str, value: bool) -> None:
    """The usual words for true and false are understood in the environment."""
    assert at.load("models: {light: {backend: mock}}", LIGHT_USE_MLOCK=text).config.models["light"].use_mlock is value


def test_values_booleans_of_a_file_are_words(at: Configured) -> None:
    """In a file `yes` and `no` are as good as `true` and `false`; a number is neither."""
    text = "models: {{light: {{backend: mock, use_mlock: {}}}}}"
    assert at.load(text.format("yes")).config.models["light"].use_mlock is True
    assert at.load(text.format("Off")).config.models["light"].use_mlock is False
    for wrong in ("1", "maybe", "null", "[]"):
        assert "allowed: true or false" in at.problems(text.format(wrong))[0]


def test_values_auto_stands_for_zero(at: Configured) -> None:
    """`auto` is a port and a number of threads, in any case and layer."""
    text = "server: {port: auto}\nmodels: {light: {backend: mock, n_threads: Auto}}"
    loaded = at.load(text)
    assert loaded.config.server.port == 0
    assert loaded.config.models["light"].n_threads == 0
    assert at.load(text, PORT="AUTO", LIGHT_N_THREADS="8").config.models["light"].n_threads == 8
    assert "auto" in at.problems("server: {max_body_mb: auto}")[0]


def test_values_lists_may_be_one_text_or_divided_by_commas(at: Configured) -> None:
    """A list of one may go without brackets; in the environment commas divide."""
    assert at.load('server: {cors_origins: "*"}').config.server.cors_origins == ["*"]
    loaded = at.load(LLMVISOR__SERVER__CORS_ORIGINS="loopback, https://a.b", LLMVISOR__SERVER__ALLOWED_HOSTS="[a,b]")
    assert loaded.config.server.cors_origins == ["loopback", "https://a.b"]
    assert loaded.config.server.allowed_hosts == ["a", "b"]


@pytest.mark.parametrize("origin", ["ftp://a", "https://a/path", "a.example", "https://", "https://a b", "**", "*\n"])
def test_values_cors_origin_of_another_form_is_refused(at: Configured, origin: str) -> None:
    """What a browser never sends as an Origin is no origin."""
    assert "cors_origins" in at.problems(f"server: {{cors_origins: [{msgspec.json.encode(origin).decode()}]}}")[0]


@pytest.mark.parametrize("host", ["a/b", "http://a", "", "a b", "h" * 256, "ä.example", "a\n"])
def test_values_host_of_another_form_is_refused(at: Configured, host: str) -> None:
    """A scheme, a path, spaces and endless names are no host."""
    assert "server.host" in at.problems(f"server: {{host: {msgspec.json.encode(host).decode()}}}")[0]


def test_values_texts_that_no_system_takes_are_refused(at: Configured) -> None:
    """NUL and half characters do not reach a system call or a printer."""
    problems = at.problems('models: {light: {path: "a\\0b"}}') + at.problems(LIGHT_MODEL_PATH="/\udcff.gguf")
    for problem in problems:
        assert "models.light.path: found" in problem
        problem.encode()


def test_values_environment_of_a_worker_takes_numbers_as_texts(at: Configured) -> None:
    """`OMP_NUM_THREADS: 2` needs no quotes, digits stay as they were written."""
    text = "models: {light: {backend: mock, env: {A: 2, B: 007, C: true, D: 1.50}}}"
    assert at.load(text).config.models["light"].env == {"A": "2", "B": "007", "C": "true", "D": "1.50"}


def test_values_options_at_the_bound_and_past_it(at: Configured) -> None:
    """A value of `option_bytes_max` bytes of JSON passes, one more does not."""
    fits = "x" * (limits.option_bytes_max - 2)
    text = "models: {{light: {{backend: mock, options: {{a: {}}}}}}}"
    assert at.load(text.format(fits)).config.models["light"].options == {"a": fits}
    assert "models.light.options.a" in at.problems(text.format(fits + "x"))[0]


def test_values_levels_know_their_short_names(at: Configured) -> None:
    """WARN is `warning`, as everywhere."""
    assert at.load(LOG_LEVEL="WARN").config.logging.main.console_level == "warning"
    assert "one of" in at.problems(LOG_LEVEL="loud")[0]


def test_model_config_gives_the_sampling_defaults() -> None:
    """What a model sets stands over what the protocol has."""
    config = ModelConfig(temperature=0.0, top_p=0.5, top_k=7, repeat_penalty=1.3)
    assert config.sampling_defaults() == Sampling(temperature=0.0, top_p=0.5, top_k=7, repeat_penalty=1.3)


def test_model_config_gives_the_options_for_loading() -> None:
    """Every key for loading goes to the worker, backend options as MessagePack."""
    config = ModelConfig(
        n_ctx=1,
        n_batch=2,
        n_threads=0,
        n_gpu_layers=4,
        parallel=5,
        use_mmap=False,
        use_mlock=True,
        options={"a": [1, "x"]},
    )
    options = config.model_options()
    assert (options.n_ctx, options.n_batch, options.n_threads, options.n_gpu_layers, options.parallel) == (
        1,
        2,
        0,
        4,
        5,
    )
    assert (options.use_mmap, options.use_mlock) == (False, True)
    # The whole has to cross the pipe as it is.
    crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=type(options))
    assert msgspec.msgpack.decode(crossed.options["a"]) == [1, "x"]


@pytest.mark.parametrize(
    ("text", "parsed"), [("80%", (0.8, 0)), ("16GiB", (None, 2**34)), ("", None), ("%", None), ("1..2", None)]
)
def test_memory_text_is_parsed(text: str, parsed: tuple[float | None, int] | None) -> None:
    """A share, bytes, or neither."""
    assert parse_memory(text) == parsed
