"""Which URLs are fetched, and which addresses their names may lead to: each known way around such a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.configuration import Configured

from llmvisor import limits
from llmvisor.errors import InvalidRequest, UnsupportedOperation
from llmvisor.http.media_hosts import MediaHosts, may_connect

LISTED = MediaHosts.of(
    (
        "images.example",
        "*.cdn.example",
        "odd.example:8443",
        "*.odd.example:8443",
        "127.0.0.1:9000",
        "[::1]:9000",
        "8.8.8.8",
    )
)


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example/a.png",
        "http://images.example",
        "HTTPS://IMAGES.Example:443/a?b=c#d",
        "https://a.cdn.example/ä.png",
        "https://a.b.cdn.example/",
        "https://odd.example:8443/",
        "http://x.odd.example:8443/",
        "http://127.0.0.1:9000/a.png",
        "http://[::1]:9000/a.png",
        "http://[0:0:0:0:0:0:0:1]:9000/",
        "https://8.8.8.8/",
    ],
)
def test_media_hosts_listed_url_is_taken(url: str) -> None:
    """A name as it is or below a listed one, an address as it is, each on the usual port or the one that is listed."""
    assert LISTED.checked(url, "p").host


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/a.png",
        "https://images.example:8443/",
        "http://images.example:443/",
        "https://sub.images.example/",
        "https://cdn.example/",
        "https://evilcdn.example/",
        "https://images.example.evil.example/",
        "https://images.example./",
        "https://odd.example/",
        "http://127.0.0.1/",
        "http://127.0.0.1:9001/",
        "http://127.0.0.2:9000/",
        "http://localhost:9000/",
        "http://[::ffff:127.0.0.1]:9000/",
        "http://0.0.0.0:9000/",
        "http://169.254.169.254/latest/meta-data/",
    ],
)
def test_media_hosts_other_url_is_refused_with_the_next_step(url: str) -> None:
    """What is not listed, by name and by port, is not asked; the answer names the key."""
    with pytest.raises(UnsupportedOperation) as error:
        LISTED.checked(url, "here")
    assert error.value.param == "here"
    assert "nothing is fetched from" in error.value.message
    assert "server.media_hosts" in (error.value.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        "http:\\\\evil.example@127.0.0.1:9000/",
        "http://evil.example\\@images.example/",
        "http://images.example@evil.example/",
        "http://user:secret@images.example/",
        "http://2130706433:9000/",
        "http://0x7f000001:9000/",
        "http://127.1:9000/",
        "http://0177.0.0.1:9000/",
        "http://127.0.0.1.:9000/",
        "http://images.example:/a",
        "http://images.example:99999/",
        "http://images.example:0x50/",
        "http://%69mages.example/",
        "http://images.example/a b",
        "http://images.example/a\n.png",
        "http://images.example/\\a",
        "http://imäges.example/",
        "http://[::1%25eth0]:9000/",
        "http://[127.0.0.1]:9000/",
        "http:///images.example",
        "http:images.example",
        "https://",
        "FILE:///etc/passwd",
        "ftp://images.example/",
        " http://images.example/",
        "https://images.example/" + "a" * limits.media_url_chars_max,
    ],
)
def test_media_hosts_what_can_be_misread_is_refused(url: str) -> None:
    """Credentials, backslashes, numbers that some resolve to 127.0.0.1: nothing that two readers take differently."""
    with pytest.raises(InvalidRequest):
        LISTED.checked(url, "here")


def test_media_hosts_empty_list_takes_nothing() -> None:
    """Off unless someone lists a host; an entry of no known form lists nothing."""
    for hosts in (MediaHosts.of(()), MediaHosts.of(("", "*", "*.", "http://images.example", "127.1:80"))):
        with pytest.raises((UnsupportedOperation, InvalidRequest)):
            hosts.checked("http://images.example/", "p")


def test_media_hosts_wildcard_does_not_reach_addresses() -> None:
    """`*.0.1` is about names: 127.0.0.1 is not below it."""
    with pytest.raises(UnsupportedOperation):
        MediaHosts.of(("*.0.0.1", "*.example")).checked("http://127.0.0.1/", "p")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
)
def test_media_hosts_name_may_lead_to_a_public_address(address: str) -> None:
    """Public ones, also as IPv6 writes those of IPv4."""
    assert may_connect("images.example", address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:808:808::1", "no address",
    ],
)  # fmt: skip
def test_media_hosts_name_may_not_lead_inside(address: str) -> None:
    """Loopback, private, link-local, shared, reserved, and IPv6 that carries one of these."""
    assert not may_connect("images.example", address)


def test_media_hosts_localhost_is_loopback_and_nothing_else() -> None:
    """Who lists `localhost` means this machine."""
    assert may_connect("localhost", "127.0.0.1")
    assert may_connect("localhost", "::1")
    assert not may_connect("localhost", "10.0.0.1")
    assert not may_connect("localhost", "8.8.8.8")


# -------------------------------------------------------------------------------------------------------- configuration


@pytest.fixture
def at(tmp_path: Path) -> Configured:
    return Configured(tmp_path)


@pytest.mark.parametrize(
    "entry",
    ["images.example", "*.images.example", "localhost:9000", "10.0.0.5", "127.0.0.1:9000", "[::1]", "[::1]:9000"],
)
def test_media_hosts_are_configured(at: Configured, entry: str) -> None:
    """Every form that is documented is taken, and lists something."""
    (listed,) = at.load(f"server: {{media_hosts: ['{entry}']}}").config.server.media_hosts
    hosts = MediaHosts.of((listed,))
    assert hosts.exact or hosts.below


@pytest.mark.parametrize(
    "entry",
    ["*", "*.", "https://images.example", "images.example/a", "::1", "a b", "a@b", "a:0", "a:123456", "", "ä.example"],
)
def test_media_hosts_of_another_form_are_refused(at: Configured, entry: str) -> None:
    """A scheme, a path, `*` alone: the mistake is told at the start, not at the first request."""
    (problem,) = at.problems(f"server: {{media_hosts: ['{entry}']}}")
    assert "server.media_hosts" in problem
    assert "*.example.com" in problem
