"""Signatures over the checksums of versions: Ed25519, with the deployment's key.

The controller signs (`service.controller.signatures`); requests read what it has stored, and need no private key.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Select, and_, select
from sqlalchemy.orm import Session

from service import signing_key
from service.auth.caller import Caller
from service.backbones import registry
from service.backbones.registry import Content, Served
from service.backbones.schemas import FileView, SignatureView
from service.backbones.signature_schemas import SIGNATURE_FILE, SigningKeyView, VersionSignatureView
from service.context.app_state import AppState
from service.db.tables import BackboneVersion, SigningKey, VersionSignature
from service.http.problems import not_found
from service.jobs.versions import VersionState


class Signer:
    """The deployment's private key."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key()
        self.id = signing_key.id_of(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        self.public_key = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        """In PEM."""

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._key.sign(data)


@dataclass(frozen=True)
class Signature:
    """A stored signature, as a source of the bytes of the file `SHA256SUMS.sig`."""

    row: VersionSignature

    @property
    def data(self) -> bytes:
        return base64.b64decode(self.row.signature)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        yield self.data[start:stop]

    def view(self, content: Content) -> SignatureView:
        """As the API shows it, for the version's present content."""
        intact = hashlib.sha256(content.data).hexdigest() == self.row.sums_sha256
        return SignatureView(key_id=self.row.key_id, signed_at=self.row.signed_at, intact=intact)

    def file(self) -> FileView:
        """As one of the version's files."""
        url = f"/v1/backbones/{self.row.name}/versions/{self.row.version}/files/{SIGNATURE_FILE}"
        return FileView(path=SIGNATURE_FILE, size=self.size, sha256=self.sha256, url=url)


# --- what requests read -----------------------------------------------------------------------------------------------


def stored(session: Session, version: Served) -> Signature | None:
    """A version's signature, if it is signed."""
    row = session.get(VersionSignature, (version.name, version.number))
    return Signature(row) if row else None


def find(state: AppState, caller: Caller, name: str, reference: str) -> tuple[Served, Signature]:
    """A version and its signature. Raises the API's 404, also for a version that is not signed, and 410."""
    version = registry.find_ready(state, caller, name, reference)
    with state.database.read() as session:
        found = stored(session, version)
    if found is None:
        raise not_found("signature", f"{version.name}:{version.number}")
    return version, found


def show(state: AppState, caller: Caller, name: str, reference: str) -> VersionSignatureView:
    """A version's signature with its key. Raises the API's 404 and 410."""
    version, found = find(state, caller, name, reference)
    with state.database.read() as session:
        public_key = session.get_one(SigningKey, found.row.key_id).public_key
    return VersionSignatureView(
        **vars(found.view(registry.content(state, version))),
        signature=found.row.signature,
        sums_sha256=found.row.sums_sha256,
        public_key=public_key,
    )


def keys(state: AppState) -> list[SigningKeyView]:
    """All public keys that the service has ever signed with, the newest first."""
    with state.database.read() as session:
        rows = session.scalars(select(SigningKey).order_by(SigningKey.created_at.desc(), SigningKey.id)).all()
    return [SigningKeyView(id=row.id, public_key=row.public_key, created_at=row.created_at) for row in rows]


# --- what the controller writes ---------------------------------------------------------------------------------------


def has_key(session: Session, signer: Signer) -> bool:
    """Whether a key is listed."""
    return session.get(SigningKey, signer.id) is not None


def add_key(session: Session, signer: Signer) -> None:
    """List a key."""
    session.merge(SigningKey(id=signer.id, public_key=signer.public_key))


def unsigned() -> Select[BackboneVersion]:
    """The versions that can be pulled and have no signature."""
    row = BackboneVersion
    signed = and_(VersionSignature.name == row.name, VersionSignature.version == row.version)
    query = select(row).outerjoin(VersionSignature, signed).where(VersionSignature.name.is_(None))
    return query.where(row.state == VersionState.READY, row.folder.is_not(None))


def record(session: Session, version: BackboneVersion, signer: Signer, sums: bytes) -> bool:
    """Sign a version's checksums; returns false if it has been deleted or replaced since its row was read."""
    row = session.get(BackboneVersion, (version.name, version.version))
    if row is None or row.state != VersionState.READY or row.source != version.source:
        return False
    session.merge(
        VersionSignature(
            name=row.name,
            version=row.version,
            key_id=signer.id,
            signature=base64.b64encode(signer.sign(sums)).decode(),
            sums_sha256=hashlib.sha256(sums).hexdigest(),
        )
    )
    return True
