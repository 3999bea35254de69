"""A source leads only where the operator lets it, and its secrets stay with it."""

from __future__ import annotations

import base64

import pytest
from yarl import URL

from errors import AddressRefused, SourceInvalid, SourceRefused
from sources import redact
from sources.address import is_public, may_be_private, names_private_network
from tests.feed_server import Answer, FeedServer, Request, redirect
from tests.sources.support import fetch, source


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",  # noqa: S104
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
        "fe80::1%eth0",
        "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1",
        "2001::1",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    """Private, local, shared, multicast and reserved addresses are not public, however they are embedded."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_public(address: str) -> None:
    """Addresses on the Internet are public."""
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "api.localhost", "feeds", "db-1", "printer.local", "x.internal",
        "nas.lan",
        "x.home.arpa", "feeds.default.svc.cluster.local", "127.0.0.1", "10.1.2.3", "::1", "fd00::1", "169.254.169.254",
    ],
)  # fmt: skip
def test_names_that_are_private(host: str) -> None:
    """A name that can only mean a private network says so by its form."""
    assert names_private_network(host)


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.example.com", "internal.example", "8.8.8.8", "notlocal", "a.lan.com"]
)
def test_names_that_are_not(host: str) -> None:
    """Any other name has to lead to a public address."""
    assert names_private_network(host) == (host == "notlocal")


def test_only_the_named_host_may_be_private() -> None:
    """A private address is fine for the host that the operator named, not for one that it leads to."""
    named = URL("http://feeds:8000/a")
    assert may_be_private(URL("http://feeds:9000/b"), named=named, allow_private=False)
    assert not may_be_private(URL("http://localhost/"), named=named, allow_private=False)
    assert may_be_private(URL("http://localhost/"), named=named, allow_private=True)
    assert not may_be_private(URL("http://a.example/"), named=URL("http://a.example/"), allow_private=False)


@pytest.mark.parametrize(
    "location",
    [
        "http://localhost:{port}/", "http://127.0.0.2:{port}/", "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/", "http://127.1:{port}/", "http://0.0.0.0:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/", "//localhost:{port}/x", "http://user:secret@localhost:{port}/",
    ],
)  # fmt: skip
async def test_redirect_into_a_private_network(location: str) -> None:
    """A redirect to another private host is refused before a connection, even from a source that is private itself."""
    async with FeedServer() as server, FeedServer() as target:
        server.answers = redirect(location.format(port=target.port))
        with pytest.raises(AddressRefused):
            await fetch(source(server.url))
        assert not target.requests


async def test_private_allowed() -> None:
    """A source that says so may lead anywhere."""
    async with FeedServer() as server, FeedServer(Answer(body=b'[{"id":1}]')) as target:
        server.answers = redirect(target.url.replace("127.0.0.1", "localhost"))
        _, records = await fetch(source(server.url, allow_private=True))
    assert list(records.values()) == [b'{"id":1}']


async def test_a_public_name_with_a_private_address() -> None:
    """What counts is the address that is connected to, not the look of the name."""
    async with FeedServer() as server:
        with pytest.raises(AddressRefused, match="which is not on the public Internet"):
            await fetch(source(f"http://0x7f.1:{server.port}/"))
    assert not server.requests


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://example.com/", "gopher://x/", "javascript:alert(1)", "data:,x"]
)
async def test_other_schemes(location: str) -> None:
    """Only http and https are followed."""
    async with FeedServer(redirect(location)) as server:
        with pytest.raises(AddressRefused, match="http"):
            await fetch(source(server.url, allow_private=True))
    with pytest.raises(AddressRefused):
        await fetch(source(location))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_followed(status: int) -> None:
    """Every kind of redirect is followed, relative ones too, with the same request."""

    def answer(request: Request) -> Answer:
        return redirect("other?page=2", status=status) if request.path == "/feed.json" else Answer(body=b"[{}]")

    async with FeedServer(answer) as server:
        await fetch(source(server.url))
    assert [(request.method, request.path, dict(request.query)) for request in server.requests] == [
        ("GET", "/feed.json", {}),
        ("GET", "/other", {"page": ["2"]}),
    ]


async def test_redirect_loop() -> None:
    """A loop ends after ten redirects."""
    async with FeedServer(redirect("/feed.json")) as server:
        with pytest.raises(SourceInvalid, match="more than 10 times"):
            await fetch(source(server.url))
    assert len(server.requests) == 11


async def test_redirect_without_a_place() -> None:
    """A redirect that leads nowhere is refused."""
    async with FeedServer(Answer(status=302)) as server:
        with pytest.raises(SourceRefused, match="302"):
            await fetch(source(server.url))


async def test_credentials() -> None:
    """Credentials in the URL travel as a header, to their own origin only, and never come back once it was left."""
    basic = "Basic " + base64.b64encode("usér:p@ss".encode()).decode()
    async with FeedServer() as server, FeedServer() as other:

        def first(request: Request) -> Answer:
            if request.path == "/feed.json":
                return redirect("/step")
            return redirect(f"{other.origin}/away") if request.path == "/step" else Answer(body=b"[]")

        server.answers = first
        other.answers = redirect(f"http://evil:secret@127.0.0.1:{server.port}/back")
        await fetch(source(server.url.replace("//", "//us%C3%A9r:p%40ss@")))
    assert [(request.path, request.headers.get("authorization")) for request in server.requests] == [
        ("/feed.json", basic),
        ("/step", basic),
        ("/back", None),
    ]
    assert [request.headers.get("authorization") for request in other.requests] == [None]


async def test_cookies_are_not_kept() -> None:
    """A cookie that a redirect sets is not sent on."""
    async with FeedServer() as server:
        answers = [Answer(status=302, headers={"Location": "/next", "Set-Cookie": "a=b"}), Answer(body=b"[]")]
        server.answers = answers
        await fetch(source(server.url))
    assert "cookie" not in server.requests[1].headers


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://a.example/x", "http://a.example/x"),
        ("https://user:secret@a.example:8443/x?key=secret&b=secret#secret", "https://a.example:8443/x?key=***&b=***"),
        ("http://secret@a.example/?secret", "http://a.example/?***"),
        ("http://u:sec@ret@a.example/", "http://a.example/"),
        ("http://[::1]:80/?a=", "http://[::1]:80/?a=***"),
        ("http://[bad/?a=secret", "http://***"),
        ("not a url", "not a url"),
        ("", ""),
    ],
)
def test_redact(url: str, shown: str) -> None:
    """What is shown of a URL holds no credentials, no fragment and no value of its query."""
    assert redact(url) == shown


@pytest.mark.parametrize("status", [302, 403, 500])
async def test_errors_tell_no_secret(status: int) -> None:
    """No error of a fetch repeats what the URL holds in credentials or query."""
    async with FeedServer(Answer(status=status, headers={"Location": "/feed.json?token=hunter2"})) as server:
        url = server.url.replace("//", "//user:hunter2@") + "?key=hunter2"
        with pytest.raises((SourceRefused, SourceInvalid)) as caught:
            await fetch(source(url))
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
