"""What the server posts to addresses that others name, and what it does not."""

import asyncio
import ipaddress
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from sd35.errors import NetworkError, RequestError
from sd35.serving.outbound import Outbound, checked_url, is_public, refuse_hidden

from .sink import sink

CERTIFICATE = Path(__file__).parent / "data" / "hook.example.pem"


def post(outbound: Outbound, url: str) -> int:
    """The status of one request."""
    return asyncio.run(outbound.post(url, b"{}", {"X-Mine": "yes"}))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1",
        "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2001:db8::1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)  # fmt: skip
def test_addresses_of_our_own_are_not_public(address: str) -> None:
    """Loopback, private, link-local, shared, reserved, multicast, and IPv6 that leads to such."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    """Ordinary ones, and IPv6 that leads to such."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "http://", "http:///x", "hook",
        "http://user@example.com/", "http://example.com:0/", "http://example.com:99999/", "http://a b.com/",
        "http://example.com/\r\nX: y", "http://ex\u0430mple.com/", "http://[::1", "http://x/" + "a" * 2000,
    ],
)  # fmt: skip
def test_texts_that_are_no_addresses(url: str) -> None:
    """Other schemes, credentials, odd ports, line breaks, letters that only look right."""
    with pytest.raises(RequestError):
        checked_url(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_hidden_addresses_are_refused_unasked(host: str) -> None:
    """Loopback in every spelling, when a job names it; an operator may allow it."""
    with pytest.raises(RequestError, match="is not a public address"):
        refuse_hidden(f"http://{host}/hook", private_ok=False)
    refuse_hidden(f"http://{host}/hook", private_ok=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "127.1", "localhost", "[::ffff:127.0.0.1]"])
def test_nothing_is_sent_to_a_private_address(host: str) -> None:
    """Whatever the name, it is judged by what it means, and the receiver sees no connection."""
    with sink() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        with pytest.raises(RequestError, match="is not a public address"):
            post(Outbound(private_ok=False), url)
    assert not receiver.received


def test_an_allowed_one_is_posted_to() -> None:
    """Path, headers and body arrive, under the name that was asked for."""
    with sink() as receiver:
        url = receiver.url.replace("127.0.0.1", "localhost")
        assert post(Outbound(private_ok=True), url + "?a=1") == 204
    (one,) = receiver.received
    assert (one.path, one.headers["X-Mine"], one.body) == ("/hook?a=1", "yes", b"{}")
    assert one.headers["Host"].startswith("localhost:")


def test_redirects_are_not_followed() -> None:
    """A receiver can't send us on to somebody else."""
    with sink() as other, sink() as receiver:
        receiver.answers, receiver.location = [307], other.url
        assert post(Outbound(private_ok=True), receiver.url) == 307
    assert not other.received


def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is connected to, whatever the name means afterwards."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **more: Any) -> Any:
        asked.append(host.decode() if isinstance(host, bytes) else str(host))
        return real("127.0.0.1", *arguments, **more)

    with sink() as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        url = receiver.url.replace("127.0.0.1", "rebinding.example")
        assert post(Outbound(private_ok=True), url) == 204
    assert asked.count("rebinding.example") == 1
    assert receiver.received[0].headers["Host"].startswith("rebinding.example:")


def test_one_hidden_address_among_public_ones_refuses_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means two addresses is as bad as the worse of them."""
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
    with pytest.raises(RequestError, match=r"is 10\.0\.0\.1, which is not a public address"):
        post(Outbound(private_ok=False), "http://two.example/")


def test_nobody_there() -> None:
    """A refused connection and a silent receiver are told apart from an answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(NetworkError, match="can't be reached"):
            post(Outbound(private_ok=True), f"http://127.0.0.1:{taken.getsockname()[1]}/")


def test_a_silent_receiver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the patience that there is for one try."""
    monkeypatch.setattr("sd35.serving.outbound.PATIENCE_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(NetworkError, match=r"did not answer in 0\.2 s"):
            post(Outbound(private_ok=True), f"http://127.0.0.1:{silent.getsockname()[1]}/")


def test_certificates_are_checked_against_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the connection goes to an address, the certificate must be the name's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(CERTIFICATE)
    trust = ssl.create_default_context(cafile=str(CERTIFICATE))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
        thread = threading.Thread(target=_answer, args=(listening, server, 2), daemon=True)
        thread.start()
        assert post(Outbound(private_ok=True, verify=trust), f"https://hook.example:{port}/") == 204
        with pytest.raises(NetworkError, match="certificate verify failed"):
            post(Outbound(private_ok=True, verify=trust), f"https://other.example:{port}/")
        thread.join(10)


def _answer(listening: socket.socket, context: ssl.SSLContext, times: int) -> None:
    for _ in range(times):
        connection, _ = listening.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as safe:
                received = b""
                while not received.endswith(b"{}"):  # what is left unread would reset the connection
                    part = safe.recv(65536)
                    if not part:
                        raise ConnectionResetError("the client hung up")
                    received += part
                safe.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        except OSError:
            connection.close()
