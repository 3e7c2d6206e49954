"""The deployment's private key, which signs backbones: an Ed25519 key in PKCS8, as text.

Such a key is 32 random bytes behind a fixed beginning (RFC 8410), so making and checking one needs no cryptography.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from pathlib import Path
from typing import Final

_BEGIN: Final = "-----BEGIN PRIVATE KEY-----"
_END: Final = "-----END PRIVATE KEY-----"
_PREFIX: Final = bytes.fromhex("302e020100300506032b657004220420")
"""PKCS8's structure up to the seed: version 0, the algorithm Ed25519, and an octet string of 32 bytes."""
_SEED_BYTES: Final = 32


class SigningKeyError(ValueError):
    """A text that is no private Ed25519 key. The text says what to do."""


def new_key() -> str:
    """A new private key: PKCS8 in base64, on one line."""
    return base64.b64encode(_PREFIX + secrets.token_bytes(_SEED_BYTES)).decode()


def to_pem(key: str) -> str:
    """A key of `new_key` as a PEM file, which openssl reads. Raises `SigningKeyError`."""
    pem = f"{_BEGIN}\n{key}\n{_END}\n"
    seed_of(pem)
    return pem


def seed_of(pem: str) -> bytes:
    """The 32 secret bytes of a private key in PEM. Raises `SigningKeyError`."""
    lines = pem.split()
    body = "".join(lines[3:-3]) if pem.strip().startswith(_BEGIN) and pem.strip().endswith(_END) else ""
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error:
        data = b""
    if not data.startswith(_PREFIX) or len(data) != len(_PREFIX) + _SEED_BYTES:
        raise SigningKeyError(
            "is no private Ed25519 key in PKCS8 without a password: make one with `openssl genpkey -algorithm ed25519`"
        )
    return data.removeprefix(_PREFIX)


def id_of(public_der: bytes) -> str:
    """The id of a public key: the first 16 hexadecimal digits of the sha256 of its DER (SubjectPublicKeyInfo)."""
    return hashlib.sha256(public_der).hexdigest()[:16]


def read(path: Path) -> bytes:
    """The seed of the key in a file. Raises `SigningKeyError` if it cannot be read or holds no such key."""
    try:
        return seed_of(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SigningKeyError(f"{path} cannot be read: {error}") from error
    except SigningKeyError as error:
        raise SigningKeyError(f"{path} {error}") from error
