"""A3: nothing listens to the world without a key, keys are not to be had from disk or log, and TCP manages nothing."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest
from tests.support.daemon import Daemon, Json, mock_model
from tests.support.http_front import served
from tests.support.polling import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-canary-of-the-configuration-0123456789"
MODELS: Json = {"mock": mock_model()}
BODY = {"model": "mock", "prompt": "hi", "max_tokens": 1}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_public_bind_without_a_key_is_refused(host: str) -> None:
    """No mode that warns: the daemon ends with 78 (wrong configuration), and says what to do."""
    daemon = Daemon({"server": {"host": host}, "models": MODELS})
    try:
        daemon.spawn()
        assert daemon.wait() == 78
        assert "--insecure-no-auth" in daemon.console()
        assert not daemon.port_file.exists()
    finally:
        daemon.__exit__(None, None, None)


def test_override_is_told_at_every_start() -> None:
    """`--insecure-no-auth` listens, and warns each time."""
    daemon = Daemon({"server": {"host": "0.0.0.0"}, "models": MODELS})
    try:
        for start in (1, 2):
            daemon.start("--insecure-no-auth")
            assert daemon.complete("mock", max_tokens=1)[0] == 200
            told = ["0.0.0.0 is open to other machines"] * start
            eventually_sync(lambda told=told: daemon.console().count(told[0]) >= len(told), 5)
            daemon.signal(15)
            assert daemon.wait() == 0
    finally:
        daemon.__exit__(None, None, None)


def test_public_bind_with_a_key_asks_for_it() -> None:
    """A key of the configuration: asked on every path but the probes; a wrong or absent one is 401, in any form."""
    config: Json = {"server": {"host": "0.0.0.0", "api_keys": ["CANARY_API_KEY"]}, "models": MODELS}
    with Daemon(config, env={"CANARY_API_KEY": KEY}) as daemon:
        assert daemon.request("GET", "/health")[0] == 200
        for headers in ({}, bearer("wrong"), bearer(KEY[:-1]), bearer(KEY + "x"), bearer(""), {"Authorization": KEY}):
            status, answer = daemon.request("POST", "/v1/completions", BODY, **headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key"), headers
            assert daemon.request("GET", "/v1/models", **headers)[0] == 401
        assert daemon.request("POST", "/v1/completions", BODY, **bearer(KEY))[0] == 200
        assert daemon.request("POST", "/v1/completions", BODY, **{"x-api-key": KEY})[0] == 200
        assert daemon.request("GET", "/llm/status", **bearer(KEY))[0] == 404
        said = daemon.console() + daemon.log_file.read_text()
        assert KEY not in said


def test_key_that_was_made_lies_nowhere() -> None:
    """It is told once; disk, log, configuration and status hold its hash, or its end."""
    with Daemon({"models": MODELS}) as daemon:
        status, made = daemon.control("POST", "/keys", {"name": "app"})
        assert status in {200, 201}, made
        key: str = made["key"]
        assert daemon.request("POST", "/v1/completions", BODY)[0] == 401
        assert daemon.request("POST", "/v1/completions", BODY, **bearer(key))[0] == 200
        for path in ("/keys", "/config", "/llm/status"):
            assert key not in str(daemon.control("GET", path))
        files = [path for path in daemon.folder.rglob("*") if path.is_file()]
        assert any(path.name == "keys.json" for path in files)
        assert [path.name for path in files if key.encode() in path.read_bytes()] == []
        keys_file = next(path for path in files if path.name == "keys.json")
        assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600
        for process in [daemon.pid, *(child.pid for child in daemon.descendants())]:
            assert key.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()


def test_key_is_for_what_it_was_made_for() -> None:
    """Inference and management are two scopes; a key for one model reaches no other."""
    config: Json = {"server": {"management": True}, "models": {**MODELS, "other": mock_model()}}
    with Daemon(config) as daemon:
        keys: dict[str, str] = {}
        for name, fields in (
            ("app", {}),
            ("ops", {"scopes": ["management"]}),
            ("one", {"models": ["mock"]}),
        ):
            keys[name] = daemon.control("POST", "/keys", {"name": name, **fields})[1]["key"]
        assert daemon.request("GET", "/llm/status", **bearer(keys["app"]))[0] == 403
        assert daemon.request("GET", "/llm/status", **bearer(keys["ops"]))[0] == 200
        assert daemon.request("POST", "/v1/completions", BODY, **bearer(keys["ops"]))[0] == 403
        assert daemon.request("POST", "/v1/completions", BODY, **bearer(keys["one"]))[0] == 200
        other = {**BODY, "model": "other"}
        assert daemon.request("POST", "/v1/completions", other, **bearer(keys["one"]))[0] in {403, 404}
        assert daemon.request("POST", "/keys", {"name": "more"}, **bearer(keys["ops"]))[0] == 404
        daemon.control("DELETE", "/keys/app")
        assert daemon.request("POST", "/v1/completions", BODY, **bearer(keys["app"]))[0] == 401


async def test_no_management_answers_on_tcp(tmp_path: Path) -> None:
    """Every path that the socket has and the port has not is 404 there, for every method."""
    inference = (
        "/v1/",
        "/v2/",
        "/rerank",
        "/embed",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/health",
        "/livez",
    )
    async with served(tmp_path) as front:
        managed = 0
        for resource in front.app.router.resources():
            path = str(resource.canonical).replace("{id}", "smol").replace("{name}", "smol")
            if path.startswith((*inference, "/readyz", "/internal/cache/stats")):
                continue
            managed += 1
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
                head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                answer = await front.raw(head.encode() + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
                assert answer.split()[1] == b"404", (method, path)
        assert managed > 15
        assert (front.control.submitted, front.control.shutdowns) == ([], 0)


def test_socket_is_for_its_owner_alone() -> None:
    """0600 in a folder of 0700, both the daemon's own user's."""
    with Daemon({"models": MODELS}) as daemon:
        for path, mode in ((daemon.socket_path, 0o600), (daemon.socket_path.parent, 0o700)):
            status = path.lstat()
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (mode, os.geteuid())


NAMED_BY_US = {("management.py", "name"), ("settings.py", "name"), ("params.py", "field.name"), ("params.py", "needed")}
"""Attributes by names of our own tables: of filters, of settings, of the fields of a job's parameters."""


def test_no_command_is_found_by_its_name() -> None:
    """Nothing of what comes in is looked up as an attribute: who adds a `getattr` looks here first."""
    found = {
        (path.name, ast.unparse(node.args[1]))
        for part in ("http", "control", "jobs", "keys")
        for path in sorted((ROOT / "daemon/llmvisor" / part).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if not isinstance(node.args[1], ast.Constant)
    }
    assert found <= NAMED_BY_US


def test_keys_are_compared_in_constant_time() -> None:
    """What was presented is hashed first, and the hashes compared by `hmac.compare_digest`."""
    tree = ast.parse((ROOT / "daemon/llmvisor/keys/key.py").read_text())
    find = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "find")
    attributes = {node.attr for node in ast.walk(find) if isinstance(node, ast.Attribute)}
    compared = [node for node in ast.walk(find) if isinstance(node, ast.Compare)]
    assert "compare_digest" in attributes
    assert all(isinstance(node.ops[0], ast.Is | ast.IsNot) for node in compared)
