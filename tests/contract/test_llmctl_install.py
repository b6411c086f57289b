"""`llmctl install`, `import`, `update`, `delete`, `models rollback`, `search`: what is asked for, and what is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import fake_daemon as fake
from tests.support.fake_daemon import FakeDaemon, as_object
from tests.support.llmctl_process import TerminalRun, llmctl
from tests.support.polling import eventually_sync

from llmctl.choosing import OFFERS, fits
from llmvisor.control.api import JobParams, JobRequest

EVENTS = "/jobs/job_01/events"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path / "s") as daemon:
        yield daemon


def will_run(daemon: FakeDaemon, kind: str, model: str, **changes: Any) -> None:
    """A job of that kind that is asked for runs, and ends well unless told otherwise."""
    changes = {"type": kind, "params": {"model": model}, **changes}
    daemon.answer("POST", "/jobs", fake.install_job(type=kind), status=202)
    daemon.stream("GET", EVENTS, [("job", fake.install_job(type=kind)), ("job", fake.ended_job(**changes))])


def asked(daemon: FakeDaemon) -> JobRequest:
    """The one job that was asked for, as the daemon decodes it."""
    (request,) = daemon.asked("POST", "/jobs")
    return msgspec.json.decode(request.body, type=JobRequest)


def test_install_asks_for_the_source_and_tells_the_models_name(daemon: FakeDaemon) -> None:
    """Everything that was given arrives; the name that the model got is told, with what came of it."""
    will_run(daemon, "install", "repo", result="repo is installed, revision 4f2a")
    given = ("install", "hf:org/repo", "--tier", "heavy", "--name", "mine", "--quant", "Q8_0")
    ended = llmctl(daemon.socket_path, *given)
    assert (ended.code, ended.stdout) == (0, "repo is installed, revision 4f2a (2.5s)\n")
    assert asked(daemon) == JobRequest(
        type="install", params=JobParams(source="hf:org/repo", tier="heavy", name="mine", quantization="Q8_0")
    )
    assert "installing hf:org/repo: downloading  50 of 100 MiB  25 MiB/s  2.0s left" in ended.stderr


def test_install_that_fails_gives_the_daemons_hint(daemon: FakeDaemon) -> None:
    """Exit code 4 for what does not exist, and the next step below the reason."""
    will_run(
        daemon, "install", "", state="failed", error="no such repository", error_code="not_found", hint="search for it"
    )
    ended = llmctl(daemon.socket_path, "install", "hf:org/nothing")
    assert ended.code == 4
    assert ended.stderr.endswith("llmctl: no such repository\n  search for it\n")


def test_install_whose_daemon_dies_says_how_to_go_on(daemon: FakeDaemon) -> None:
    """1. It downloads. 2. The daemon is gone. Result: exit code 3, the job goes on later, and is named."""
    daemon.answer("POST", "/jobs", fake.install_job(), status=202)
    daemon.stream("GET", EVENTS, [("job", fake.install_job())], hold_open=True)
    with TerminalRun(daemon.socket_path, "install", "hf:org/repo") as run:
        run.expect("50 of 100 MiB")
        daemon.close()
        run.expect("the job job_01 goes on when it runs again")
        run.expect("llmctl jobs watch job_01")
        assert run.wait() == 3


def test_install_whose_daemon_is_dying_is_told_the_same(daemon: FakeDaemon) -> None:
    """1. The stream is cut. 2. A connection that is still taken ends without an answer. 3. Nobody listens."""
    daemon.answer("POST", "/jobs", fake.install_job(), status=202)
    daemon.stream("GET", EVENTS, [("job", fake.install_job())])
    daemon.raw("GET", "/jobs/job_01", b"")
    with TerminalRun(daemon.socket_path, "install", "hf:org/repo") as run:
        eventually_sync(lambda: len(daemon.asked("GET", "/jobs/job_01")) > 1, 20, "it asks again")
        daemon.close()
        run.expect("the job job_01 goes on when it runs again")
        assert run.wait() == 3


def test_install_interrupted_leaves_the_job_going(daemon: FakeDaemon) -> None:
    """Ctrl-C ends llmctl with 130, not the download."""
    daemon.answer("POST", "/jobs", fake.install_job(), status=202)
    daemon.stream("GET", EVENTS, [("job", fake.install_job())], hold_open=True)
    with TerminalRun(daemon.socket_path, "install", "hf:org/repo") as run:
        run.expect("25 MiB/s")
        run.interrupt(until="the job job_01 goes on")
        assert run.wait() == 130
    assert daemon.asked("POST", "/jobs/job_01/cancel") == []


def test_install_without_a_source_needs_a_terminal(daemon: FakeDaemon) -> None:
    """A script gets exit code 2 and what it could have said."""
    ended = llmctl(daemon.socket_path, "install")
    assert ended.code == 2
    assert "llmctl install starter" in ended.stderr
    assert daemon.requests == []


def test_install_without_a_source_offers_what_fits(daemon: FakeDaemon) -> None:
    """On a terminal: a list without the models that are too large, and the one that is picked is installed."""
    daemon.answer("GET", "/llm/status", fake.daemon_status(memory_limit=4 * 1024**3))
    will_run(daemon, "install", "qwen3-0.6b")
    with TerminalRun(daemon.socket_path, "install") as run:
        run.expect("These fit in the 4.0 GiB")
        run.expect("which?")
        run.send("99\n")
        run.expect("hf:org/repo or ollama:name")
        run.send("2\n")
        run.expect("qwen3-0.6b is installed")
        run.expect("llmctl run qwen3-0.6b")
        assert run.wait() == 0
    assert "Qwen3-4B" in run.text
    assert "Qwen3-32B" not in run.text
    assert asked(daemon).params.source == OFFERS[1].source


def test_install_without_a_choice_installs_nothing(daemon: FakeDaemon) -> None:
    """Enter alone is a no."""
    daemon.answer("GET", "/llm/status", fake.daemon_status())
    with TerminalRun(daemon.socket_path, "install") as run:
        run.expect("which?")
        run.send("\n")
        assert run.wait() == 1
    assert daemon.asked("POST", "/jobs") == []


def test_offers_fit_more_the_more_memory_there_is() -> None:
    """The starter model fits nearly anywhere; nothing that fits in less memory is missing with more."""
    counts = [sum(fits(offer, limit * 1024**3) for offer in OFFERS) for limit in (1, 2, 4, 8, 16, 64)]
    assert counts == sorted(counts)
    assert fits(OFFERS[0], 512 * 1024**2)
    assert counts[-1] == len(OFFERS)


def test_import_hands_an_absolute_path_on(daemon: FakeDaemon, tmp_path: Path) -> None:
    """The daemon has another working directory: what was relative no longer is."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    will_run(daemon, "import", "m")
    ended = llmctl(daemon.socket_path, "import", "m.gguf", "--link", "--tier", "light", cwd=tmp_path)
    assert ended.stdout.startswith("m is installed")
    assert asked(daemon).params == JobParams(path=str(tmp_path / "m.gguf"), mode="link", tier="light")


def test_import_of_nothing_is_exit_code_4(daemon: FakeDaemon) -> None:
    """A path that is not there is told before anything is asked."""
    ended = llmctl(daemon.socket_path, "import", "absent.gguf")
    assert (ended.code, ended.stderr) == (4, "llmctl: there is no absent.gguf\n")
    assert daemon.requests == []


def test_import_takes_one_way_of_taking(daemon: FakeDaemon) -> None:
    """`--move --copy` contradict each other."""
    assert llmctl(daemon.socket_path, "import", ".", "--move", "--copy").code == 2


def test_update_tells_what_came_of_it(daemon: FakeDaemon) -> None:
    """The daemon's own words: a revision, or that there is no new one."""
    will_run(daemon, "update", "qwen", result="qwen is installed, revision 99c1")
    assert llmctl(daemon.socket_path, "update", "qwen").stdout == "qwen is installed, revision 99c1 (2.5s)\n"
    assert asked(daemon) == JobRequest(type="update", params=JobParams(model="qwen"))


def test_update_needs_a_model_or_all(daemon: FakeDaemon) -> None:
    """Neither, and both, are exit code 2."""
    assert llmctl(daemon.socket_path, "update").code == 2
    assert llmctl(daemon.socket_path, "update", "qwen", "--all").code == 2


def test_update_all_asks_for_every_installed_model(daemon: FakeDaemon) -> None:
    """What only the configuration names has no source, and is left alone; all jobs are watched together."""
    installed = [fake.model("a", source="hf:org/a"), fake.model("b"), fake.model("c", source="ollama:c")]
    daemon.items("/llm/models", installed)
    daemon.answer("POST", "/jobs", fake.ended_job(type="update"), status=202)
    daemon.answer("GET", "/jobs/job_01", fake.ended_job(type="update"))
    daemon.stream("GET", "/events", [], hold_open=True)
    ended = llmctl(daemon.socket_path, "update", "--all")
    assert ended.code == 0
    names = [as_object(request)["params"]["model"] for request in daemon.asked("POST", "/jobs")]
    assert names == ["light/a", "light/c"]
    assert "succeeded" in ended.stdout


def test_update_all_goes_on_where_one_is_refused(daemon: FakeDaemon) -> None:
    """The others are updated and watched; what was refused is told, and makes the exit code 1."""
    daemon.items("/llm/models", [fake.model("a", source="file:/a"), fake.model("c", source="ollama:c")])
    daemon.error("POST", "/jobs", "light/a was imported", status=400, code="invalid_request")
    refusal = daemon.answers["POST", "/jobs"]
    daemon.answer("POST", "/jobs", fake.ended_job(type="update"), status=202)
    daemon.answer_in_turn("POST", "/jobs", [refusal, daemon.answers["POST", "/jobs"]])
    daemon.answer("GET", "/jobs/job_01", fake.ended_job(type="update"))
    daemon.stream("GET", "/events", [], hold_open=True)
    ended = llmctl(daemon.socket_path, "update", "--all")
    assert ended.code == 1
    assert "light/a was imported" in ended.stderr
    assert "succeeded" in ended.stdout


def test_rollback_is_an_update_that_goes_back(daemon: FakeDaemon) -> None:
    """`models rollback NAME`, and without a name exit code 2."""
    will_run(daemon, "update", "qwen")
    ended = llmctl(daemon.socket_path, "models", "rollback", "qwen")
    assert ended.stdout.startswith("qwen is back at its earlier revision")
    assert asked(daemon) == JobRequest(type="update", params=JobParams(model="qwen", rollback=True))
    assert llmctl(daemon.socket_path, "models", "rollback").code == 2


def test_delete_asks_first(daemon: FakeDaemon) -> None:
    """On a terminal: anything but yes leaves the model alone; yes deletes it, and the bytes are told."""
    daemon.answer("GET", "/llm/models/qwen", fake.model("qwen"))
    will_run(daemon, "delete", "qwen", result="102760448 bytes are free again", done=98 * 1024**2)
    with TerminalRun(daemon.socket_path, "delete", "qwen") as run:
        run.expect("delete light/qwen (98 MiB)? [y/N]")
        run.send("\n")
        run.expect("is left as it is")
        assert run.wait() == 1
    assert daemon.asked("POST", "/jobs") == []
    with TerminalRun(daemon.socket_path, "delete", "qwen", "--force") as run:
        run.expect("[y/N]")
        run.send("y\n")
        run.expect("qwen is deleted, 98 MiB are free again")
        assert run.wait() == 0
    assert asked(daemon) == JobRequest(type="delete", params=JobParams(model="qwen", force=True))


def test_delete_in_a_script_needs_yes(daemon: FakeDaemon) -> None:
    """Nobody is there to be asked: exit code 2; with `--yes` it is done."""
    will_run(daemon, "delete", "qwen")
    ended = llmctl(daemon.socket_path, "delete", "qwen")
    assert (ended.code, "add --yes" in ended.stderr) == (2, True)
    assert daemon.requests == []
    assert llmctl(daemon.socket_path, "delete", "qwen", "--yes").code == 0


@pytest.mark.parametrize("command", [("delete", "x", "--yes"), ("update", "x"), ("models", "rollback", "x")])
def test_an_unknown_model_is_exit_code_4(daemon: FakeDaemon, command: tuple[str, ...]) -> None:
    """In the daemon's words."""
    daemon.error("POST", "/jobs", "no model named 'x'", status=404, code="model_not_found")
    ended = llmctl(daemon.socket_path, *command)
    assert (ended.code, ended.stderr) == (4, "llmctl: no model named 'x'\n")


def test_a_job_that_is_not_waited_for_is_named(daemon: FakeDaemon) -> None:
    """`--no-wait` prints the id, and as JSON the job."""
    daemon.answer("POST", "/jobs", fake.install_job(), status=202)
    assert llmctl(daemon.socket_path, "install", "starter", "--no-wait").stdout == "job_01\n"
    shown = llmctl(daemon.socket_path, "install", "starter", "--no-wait", "--json").stdout
    assert json.loads(shown)["state"] == "running"
    assert daemon.asked("GET", EVENTS) == []


def test_search_shows_what_install_takes(daemon: FakeDaemon) -> None:
    """The source comes first, whether it fits and whether it needs a token are told."""
    found = [fake.registry_model(), fake.registry_model("org/huge", fits=False, gated=True, size=None)]
    daemon.items("/llm/registry/models", found)
    ended = llmctl(daemon.socket_path, "search", "qwen", "gguf", "--registry", "huggingface", "--limit", "5")
    assert daemon.requests[0].query == {"q": "qwen gguf", "registry": "huggingface", "limit": "5"}
    rows = [line.split() for line in ended.stdout.splitlines()[1:]]
    assert rows[0] == ["hf:org/repo", "2.0G", "4.0B", "yes", "51K", "120"]
    assert rows[1] == ["hf:org/huge", "4.0B", "no", "51K", "120", "needs", "a", "token"]


def test_search_that_finds_nothing_prints_nothing(daemon: FakeDaemon) -> None:
    """No error, and nothing that a program would take for a model."""
    daemon.items("/llm/registry/models", [])
    ended = llmctl(daemon.socket_path, "search", "xyzzy")
    assert (ended.code, ended.stdout) == (0, "")
