"""Response models of signatures and public keys. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from service.backbones.schemas import SignatureView
from service.http.schemas import View

SIGNATURE_FILE: Final = "SHA256SUMS.sig"
"""The file with a version's signature, beside `SHA256SUMS`: the 64 bytes of Ed25519."""
LARGEST_SUMS: Final = 4 * 2**20
"""Largest checksum file that is signed and verified, in bytes: several times that of a version with the most files that
clients take."""


class VersionSignatureView(SignatureView):
    """The signature over a version's `SHA256SUMS`."""

    algorithm: str = "ed25519"
    signature: str
    """Its 64 bytes in base64."""
    sums_sha256: str
    """The sha256 of the `SHA256SUMS` that was signed."""
    public_key: str
    """The key, in PEM. A key that comes with what it verifies proves nothing: compare it with one that you trust."""


class SigningKeyView(View):
    """A public key of the deployment."""

    id: str
    """The first 16 hexadecimal digits of the sha256 of the key in DER."""
    public_key: str
    """In PEM."""
    created_at: datetime
    """When the service first had it. Earlier keys are listed as long as the service exists."""
