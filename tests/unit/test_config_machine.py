"""What a configuration may ask of the machine: addresses, sockets, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.configuration import Configured

from llmvisor import limits


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


def test_config_public_address_is_refused_unless_allowed(at: Configured) -> None:
    """Without API keys no other machine may reach the port, unless the person insists, and is warned at each start."""
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        (problem,) = at.problems(HOST=host)
        assert problem.startswith(f"HOST: server.host: {host} is open to other machines")
        loaded = at.load(HOST=host, flags={"insecure_no_auth": True})
        assert loaded.config.server.host == host
        assert len(loaded.warnings) == 1
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"):
        assert at.load(HOST=host).warnings == []


def test_config_socket_path_at_the_bound_and_past_it(at: Configured) -> None:
    """A path of `socket_path_bytes_max` bytes passes, one more is refused with both numbers, counted in bytes."""
    fits = "/" + "s" * (limits.socket_path_bytes_max - 1)
    assert at.load(flags={"socket": fits}).config.control.socket == fits
    (problem,) = at.problems(flags={"socket": fits + "s"})
    assert f"has {limits.socket_path_bytes_max + 1} bytes" in problem
    assert f"up to {limits.socket_path_bytes_max} bytes" in problem
    assert at.problems(flags={"socket": fits[:-1] + "é"})
    assert at.problems(XDG_RUNTIME_DIR="/" + "r" * limits.socket_path_bytes_max)


def test_config_socket_mode_may_be_written_as_a_number(at: Configured) -> None:
    """0660 with and without quotes is the octal mode; one that shuts its own person out, or is open to all, is told."""
    for text in ('"0660"', "0660", "660", "0o660"):
        assert at.load(f"control: {{mode: {text}}}").config.control.mode_bits == 0o660
    assert at.problems("control: {mode: 0060}")
    assert len(at.load("control: {mode: 0666}").warnings) == 1


@pytest.mark.parametrize(
    ("limit", "total", "expected"),
    [
        ("80%", 1000, 800),
        ("100%", 7, 7),
        ("0.5%", 1000, 5),
        ("16GiB", 1, 2**34),
        ("1.5 kB", 1, 1500),
        ("4096", 1, 4096),
    ],
)
def test_config_memory_limit_is_a_share_or_bytes(at: Configured, limit: str, total: int, expected: int) -> None:
    """A percentage counts of what there is, a size as it is."""
    assert at.load(f"memory: {{limit: {limit}}}").config.memory.limit_bytes(total) == expected


@pytest.mark.parametrize("limit", ["0%", "101%", "-1", "0", "GiB", "16Gib2", "1e9", "80%%", "٣GiB", "[]", "", "1.2.3"])
def test_config_memory_limit_of_another_form_is_refused(at: Configured, limit: str) -> None:
    """What is neither a share nor bytes is a problem."""
    assert "memory.limit" in at.problems(f"memory: {{limit: {limit}}}")[0]
