"""Signatures of webhooks as Standard Webhooks defines them: HMAC-SHA256 over id, time and body."""

import base64
import binascii
import hashlib
import hmac

# A prefix, not a secret.
SECRET_PREFIX = "whsec_"  # noqa: S105  # nosec B105  # how every such secret begins
LEAST_KEY_BYTES = 24


def signing_key(secret: str) -> bytes:
    """The key in a secret.

    Raises:
        ValueError: not `whsec_` and the base64 of 24 bytes or more.
    """
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) < LEAST_KEY_BYTES:
        raise ValueError(
            f"A webhook secret is {SECRET_PREFIX} and the base64 of {LEAST_KEY_BYTES} random bytes or more; "
            "`openssl rand -base64 32` makes the second part."
        )
    return key


def signature_headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a signed webhook; `timestamp` is in seconds since 1970, of this attempt."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    digest = hmac.new(signing_key(secret), signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
