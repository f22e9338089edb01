"""Signatures by which receivers know that a webhook is ours: the Standard Webhooks scheme.

Signed is `id.timestamp.body` with HMAC-SHA256. The id stays the same over all tries, so that a receiver can
tell a repeat; the timestamp is that of the try. https://www.standardwebhooks.com

Every key has a secret of its own, made of the server's secret and the key's id: one that can check its own
webhooks can't sign another key's.
"""

import base64
import hashlib
import hmac

PREFIX = "whsec_"


class Signer:
    """Signs with secrets that come from the server's one."""

    def __init__(self, server_secret: bytes) -> None:
        self._server_secret = server_secret

    def secret(self, key_id: str | None) -> str:
        """What a key's owner checks signatures with; None: where no key was ever made."""
        return PREFIX + base64.b64encode(self._raw(key_id)).decode()

    def headers(self, key_id: str | None, message_id: str, body: bytes, now: float) -> dict[str, str]:
        """What goes with one try."""
        stamp = str(int(now))
        signed = f"{message_id}.{stamp}.".encode() + body
        digest = hmac.new(self._raw(key_id), signed, hashlib.sha256).digest()
        return {
            "Content-Type": "application/json",
            "User-Agent": "sd35",
            "webhook-id": message_id,
            "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(digest).decode(),
        }

    def _raw(self, key_id: str | None) -> bytes:
        # A label apart from picture addresses, which the same secret signs.
        return hmac.new(self._server_secret, f"webhook\n{key_id or ''}".encode(), hashlib.sha256).digest()
