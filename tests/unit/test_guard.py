"""The guard's rules: which Host, Origin and Content-Type may ask."""

from __future__ import annotations

import pytest

from llmvisor.errors import HostNotAllowed, OriginNotAllowed, UnsupportedMediaType
from llmvisor.http.guard import Guard, check_content_type, is_management
from llmvisor.http.settings import HttpSettings

LOCAL = "127.0.0.1"


def guard(**fields: object) -> Guard:
    return Guard.of(HttpSettings(**fields))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.8.9.10:1",
        "localhost",
        "LocalHost:65535",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "my.box",
        "MY.BOX:443",
        "192.0.2.7:8000",
    ],
)
def test_host_allows_loopback_bound_and_listed_names(host: str) -> None:
    """Loopback literals, what the port is bound to, and the configured names pass, on any port."""
    guard(host="192.0.2.7", allowed_hosts=("My.Box",)).check_host([host], host, LOCAL)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil",
        "localhost.evil",
        "evil.localhost",
        "x.internal",
        "box.local",
        "0.0.0.0",
        "0.0.0.0:8000",
        "[::]",
        "[::ffff:127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "10.0.0.1",
        "127.0.0.1@evil",
        "user@127.0.0.1",
        "127.0.0.1:80:80",
        "127.0.0.1:port",
        "127.0.0.1:123456",
        "[::1",
        "::1",
        "localhost/",
        "localhost ",
        "localhost\t",
        "localhost,evil",
        "lоcalhost",  # a Cyrillic o
        "١٢٧.0.0.1",  # Arabic digits
    ],
)
def test_host_refuses_every_other_name(host: str) -> None:
    """A name that a page could have rebound, or that is no name at all, is refused on every bind."""
    for bound in (LOCAL, "0.0.0.0", "::"):
        with pytest.raises(HostNotAllowed):
            guard(host=bound).check_host([host], host, LOCAL)


def test_host_has_to_be_exactly_one_and_the_effective_one() -> None:
    """No header, two headers, and a request line that names another host are refused."""
    for headers, effective in [([], LOCAL), ([LOCAL, LOCAL], LOCAL), ([LOCAL], "evil"), ([LOCAL], "localhost")]:
        with pytest.raises(HostNotAllowed):
            guard().check_host(headers, effective, LOCAL)


def test_host_may_be_the_address_that_was_connected_to() -> None:
    """On a public bind the interface's own literal address passes, another one does not."""
    public = guard(host="0.0.0.0")
    public.check_host(["192.0.2.9:8000"], "192.0.2.9:8000", "192.0.2.9")
    public.check_host(["[2001:DB8::9]"], "[2001:DB8::9]", "2001:db8::9")
    with pytest.raises(HostNotAllowed):
        public.check_host(["192.0.2.8:8000"], "192.0.2.8:8000", "192.0.2.9")


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173", "http://127.0.0.1:8000", "HTTP://x".lower()],
)
def test_origin_of_loopback_pages_and_our_own_is_allowed(origin: str) -> None:
    """A page of this machine, or of this very host, may ask, and may read the answer."""
    assert guard().check_origin([origin], "same-site", "x") == origin


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost.evil",
        "http://127.0.0.1.evil:8000",
        "http://localhost@evil",
        "ftp://localhost",
        "localhost",
        "http://localhost/",
        "http://",
        "file://",
        "chrome-extension://abcdef",
        "http://0.0.0.0:8000",
    ],
)
def test_origin_of_strangers_is_refused(origin: str) -> None:
    """Other sites, opaque origins and what is no origin are refused."""
    with pytest.raises(OriginNotAllowed):
        guard().check_origin([origin], None, "127.0.0.1:8000")


def test_origin_lists_and_star_are_what_they_say() -> None:
    """A listed origin passes exactly; `*` lets every one pass and is answered as `*`; an empty list none."""
    listed = guard(cors_origins=("https://App.Example", "tauri://localhost"))
    assert listed.check_origin(["https://app.example"], None, LOCAL) == "https://app.example"
    assert listed.check_origin(["tauri://localhost"], None, LOCAL) == "tauri://localhost"
    for other in ("https://app.example:444", "http://app.example", "http://localhost"):
        with pytest.raises(OriginNotAllowed):
            listed.check_origin([other], None, LOCAL)
    assert guard(cors_origins=("*",)).check_origin(["https://evil.example"], "cross-site", LOCAL) == "*"
    with pytest.raises(OriginNotAllowed):
        guard(cors_origins=()).check_origin(["http://localhost"], None, LOCAL)


def test_fetch_site_without_an_origin_is_refused_across_sites() -> None:
    """A page's request that hides its origin (an image, a form, a link) is told by Sec-Fetch-Site."""
    for site in ("cross-site", "same-site"):
        with pytest.raises(OriginNotAllowed):
            guard().check_origin([], site, LOCAL)
    for site in (None, "none", "same-origin"):
        assert guard().check_origin([], site, LOCAL) is None


def test_two_origins_are_refused() -> None:
    """Which of them counts would be a guess."""
    with pytest.raises(OriginNotAllowed):
        guard().check_origin(["http://localhost", "http://localhost"], None, LOCAL)


@pytest.mark.parametrize("value", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
def test_content_type_of_json_is_read(value: str) -> None:
    """JSON, however it is written."""
    check_content_type([value], None)
    check_content_type([value], "identity")


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ([], None),
        (["text/plain"], None),
        (["application/x-www-form-urlencoded"], None),
        (["multipart/form-data; boundary=x"], None),
        (["application/jsonp"], None),
        (["text/plain; application/json"], None),
        (["application/json, text/plain"], None),
        (["application/json", "text/plain"], None),
        (["application/json"], "gzip"),
    ],
)
def test_content_type_of_simple_requests_is_refused(values: list[str], encoding: str | None) -> None:
    """What a page can send without a preflight is not read as JSON, and nothing is decompressed."""
    with pytest.raises(UnsupportedMediaType):
        check_content_type(values, encoding)


def test_management_paths_are_told_from_others() -> None:
    """Each management path and what is below it; names that only begin alike are not."""
    for path in (
        "/llm",
        "/llm/status",
        "/jobs",
        "/jobs/x/events",
        "/logs",
        "/events",
        "/config/check",
        "/shutdown",
        "/internal/cache/clear",
    ):
        assert is_management(path)
    for path in ("/", "/v1/models", "/v1/jobs", "/logsx", "/llmx", "/eventsource", "/health"):
        assert not is_management(path)


def test_guard_takes_all_that_another_allows() -> None:
    """What is reloaded holds whole: management over TCP, too."""
    now = guard(management=True, allowed_hosts=("old.box",))
    other = guard(host="192.0.2.1", cors_origins=("https://app.example",))
    now.take(other)
    assert now == other
