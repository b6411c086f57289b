"""A8: a chat template, of a model's file or of a person's, is rendered in the worker, in a sandbox, within bounds."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from tests.support.daemon import Daemon, mock_model
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.worker_client import Worker

from llmvisor_runtimes.protocol import (
    ApplyTemplate,
    ChatMessage,
    ChatPrompt,
    Failed,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    ModelOptions,
    Text,
)

PAYLOADS = [
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch CANARY') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ raise_exception.__globals__['__builtins__'].open('CANARY', 'w') }}",
    "{% include 'CANARY' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{{ messages.append('x') }}",
]
BOMBS = [
    "{% for a in range(999999999) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 99999999999 }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set ns = namespace(s='x') %}{% for a in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
]
HI = ChatPrompt([ChatMessage("user", "hi")])
ANSWER_SECONDS_MAX = 20.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("template") / "tiny.gguf", context_length=128)


def loaded(worker: Worker, model: Path, template: str) -> Loaded | LoadFailed:
    """A worker of llama.cpp whose model has this template."""
    assert isinstance(worker.receive(), Hello)
    options = {"chat_template": msgspec.Raw(msgspec.msgpack.encode(template))}
    worker.send(Load("m", str(model), ModelOptions(n_ctx=128, n_threads=1, parallel=1, options=options)))
    while not isinstance(report := worker.receive(60), Loaded | LoadFailed):
        pass
    return report


def rendered(worker: Worker, id: int) -> Text | Failed:
    worker.send(ApplyTemplate(id, HI))
    while not isinstance(report := worker.receive(ANSWER_SECONDS_MAX), Text | Failed):
        pass
    return report


def test_payloads_touch_nothing(model: Path, tmp_path: Path) -> None:
    """Attributes, globals, filters, format strings, imports: the worker refuses the template or the rendering, and the
    canary is not there. Without the operating system's sandbox: Jinja's alone has to hold."""
    canary = tmp_path / "canary"
    # One template that tries all of them, by what the message says: a load for each would take long.
    tries = "".join(
        f"{{% if messages[0]['content'] == '{number}' %}}{payload.replace('CANARY', str(canary))}{{% endif %}}"
        for number, payload in enumerate(PAYLOADS)
        if "import" not in payload.split("'")[0] and "include" not in payload
    )
    with Worker("llamacpp") as worker:
        assert isinstance(loaded(worker, model, tries + "fine"), Loaded)
        outcomes: list[str] = []
        for number in range(len(PAYLOADS)):
            worker.send(ApplyTemplate(number + 1, ChatPrompt([ChatMessage("user", str(number))])))
            while not isinstance(report := worker.receive(ANSWER_SECONDS_MAX), Text | Failed):
                pass
            outcomes.append(report.text if isinstance(report, Text) else report.message)
        assert not canary.exists()
        assert not any(word in said for said in outcomes for word in ("<class", "<built-in", "__main__", "<module"))
        assert worker.process.poll() is None
    for payload in PAYLOADS:
        if "include" in payload or payload.startswith("{% import"):
            with Worker("llamacpp") as worker:
                report = loaded(worker, model, payload.replace("CANARY", str(canary)))
                assert isinstance(report, LoadFailed) or isinstance(rendered(worker, 1), Failed)
    assert not canary.exists()


def test_bombs_end_at_the_deadline(model: Path) -> None:
    """Time, memory and output are bounded; the same worker answers the next one."""
    tries = "".join(
        f"{{% if messages[0]['content'] == '{number}' %}}{bomb}{{% endif %}}" for number, bomb in enumerate(BOMBS)
    )
    with Worker("llamacpp") as worker:
        assert isinstance(loaded(worker, model, tries + "fine"), Loaded)
        for number in range(len(BOMBS)):
            begun = time.monotonic()
            worker.send(ApplyTemplate(number + 1, ChatPrompt([ChatMessage("user", str(number))])))
            while not isinstance(report := worker.receive(ANSWER_SECONDS_MAX), Text | Failed):
                pass
            assert isinstance(report, Failed), BOMBS[number]
            assert time.monotonic() - begun < ANSWER_SECONDS_MAX
        answer = rendered(worker, 100)
        assert isinstance(answer, Text)
        assert answer.text == "fine"
        rss = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * 4096
        assert rss < 1024**3


def test_template_of_a_request_is_not_rendered() -> None:
    """`chat_template` in a request is none of the fields; what it says goes nowhere."""
    with Daemon({"models": {"mock": mock_model(reply_tokens=2)}}) as daemon:
        body = {
            "model": "mock",
            "messages": [{"role": "user", "content": "hi"}],
            "chat_template": "{{ cycler.__init__.__globals__.os.popen('id').read() }}SUNG",
            "max_tokens": 2,
        }
        status, answer = daemon.request("POST", "/apply-template", body)
        assert status in {200, 400}
        assert "SUNG" not in str(answer)
        status, answer = daemon.request("POST", "/v1/chat/completions", body)
        assert status in {200, 400}
        assert "SUNG" not in str(answer)


def test_jinja_is_one_whose_sandbox_holds() -> None:
    """CVE-2024-56326 and its successors: the sandbox was left by `|attr` and by indirect `format`."""
    assert tuple(int(part) for part in version("jinja2").split(".")[:3]) >= (3, 1, 6)
