"""Requests that the server itself sends to addresses which others have named.

Whoever may name an address could make the server ask its own network for them: a router's page, a cloud's
metadata. So the name is resolved once, every address that it has must be a public one, and the connection
goes to the address that was checked, whatever the name means a moment later. Certificates are still checked
against the name. Redirects are not followed, proxies of the environment not used, and of the answer no more
than its status is read. https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html
"""

import asyncio
import ipaddress
import socket
import ssl
from urllib.parse import SplitResult, urlsplit

import httpx2

from sd35.errors import NetworkError, RequestError

PATIENCE_S = 10.0
LONGEST_URL = 2000
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Outbound:
    """Posts to addresses; `private_ok` where the operator has named them, or allows any."""

    def __init__(self, *, private_ok: bool, verify: ssl.SSLContext | bool = True) -> None:
        self._private_ok, self._verify = private_ok, verify

    async def post(self, url: str, content: bytes, headers: dict[str, str]) -> int:
        """The status of the answer; NetworkError where there is none, RequestError for what is refused."""
        parts = checked_url(url)
        try:
            async with asyncio.timeout(PATIENCE_S):
                addresses = await self._resolved(parts)
                return await self._post(parts, addresses, content, headers)
        except TimeoutError as error:
            raise NetworkError(f"{parts.hostname} did not answer in {PATIENCE_S:g} s.") from error
        except (OSError, httpx2.HTTPError) as error:
            why = str(error) or type(error).__name__
            raise NetworkError(f"{parts.hostname} can't be reached ({why}).") from error

    async def _resolved(self, parts: SplitResult) -> list[str]:
        loop, port = asyncio.get_running_loop(), parts.port or _default_port(parts)
        found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        addresses = [str(row[4][0]).partition("%")[0] for row in found]
        if not self._private_ok:
            for address in addresses:
                _refuse_private(parts, ipaddress.ip_address(address))
        return list(dict.fromkeys(addresses))

    async def _post(
        self, parts: SplitResult, addresses: list[str], content: bytes, headers: dict[str, str]
    ) -> int:
        host = parts.hostname or ""
        headers = {**headers, "Host": parts.netloc}
        async with httpx2.AsyncClient(verify=self._verify, trust_env=False, follow_redirects=False) as client:
            for address in addresses:
                to = httpx2.URL(parts.geturl()).copy_with(host=address)
                try:
                    request = client.build_request(
                        "POST", to, content=content, headers=headers, extensions={"sni_hostname": host}
                    )
                    answer = await client.send(request, stream=True)
                except httpx2.ConnectError:
                    if address == addresses[-1]:
                        raise
                    continue
                await answer.aclose()
                return answer.status_code
        raise NetworkError(f"{host} has no address.")


def checked_url(url: str) -> SplitResult:
    """The parts of an address that may be posted to; RequestError for any other text."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise RequestError(f"{url[:80]!r} is no address to post to: give http://HOST/... or https://HOST/...")
    if parts.username is not None or parts.password is not None:
        raise RequestError("An address to post to can't hold a name or password: leave out what is before @.")
    return parts


def refuse_hidden(url: str, *, private_ok: bool) -> None:
    """RequestError for what can be refused without asking who a name is."""
    parts = checked_url(url)
    literal = _literal(parts.hostname or "")
    if literal is not None and not private_ok:
        _refuse_private(parts, literal)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet at large, and so does the one that may be inside it."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := _inner(address)) is not None:
        return is_public(inner)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _refuse_private(parts: SplitResult, address: Address) -> None:
    if not is_public(address):
        raise RequestError(
            f"{parts.hostname} is {address}, which is not a public address: give one that is, or have the "
            "operator allow private ones (--webhook-private)."
        )


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for or leads through."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _literal(host: str) -> Address | None:
    """The address that a host is if it is one, however it is written (2130706433, 0x7f.1, [::1])."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdigit() else None
    except OSError:
        return None


def _default_port(parts: SplitResult) -> int:
    return 443 if parts.scheme == "https" else 80
