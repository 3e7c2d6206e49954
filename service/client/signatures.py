"""Signatures over pulled backbones: which keys are trusted, and whether checksums and files are what a key signed.

A version's `SHA256SUMS` is signed, and names all of its files. The folder of a single format has a `SHA256SUMS` of its
own, so the signed one lies beside it under the name `SHA256SUMS.all`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

from service.atomic import write_atomically
from service.backbones.schemas import VersionView
from service.backbones.signature_schemas import SIGNATURE_FILE
from service.client.errors import ClientError
from service.client.listing import ALL, PullFormat
from service.signing_key import id_of
from trainer.protocol.names import BACKBONE_SUMS as SUMS
from trainer.spec.export import BackboneFormat

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNED_SUMS: Final = "SHA256SUMS.all"
"""The signed checksums of the whole version, in the folder of a single format."""
SIGNATURE_BYTES: Final = 64
KNOWN_KEYS: Final = "known-keys.json"
_LINE: Final = re.compile(r"([0-9a-f]{64})  (.+)")
_PEM: Final = re.compile(r"-----BEGIN PUBLIC KEY-----[^-]+-----END PUBLIC KEY-----")
OWN_FILES: Final = frozenset({SUMS, SIGNATURE_FILE, SIGNED_SUMS})


class SignatureError(ClientError):
    """A backbone is not what a trusted key has signed. The text says what is wrong."""


# --- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublicKey:
    """A public Ed25519 key."""

    id: str
    pem: str
    origin: str
    """Where this client has it from."""

    @classmethod
    def of(cls, pem: str, origin: str) -> PublicKey:
        """Raises `ClientError` for a text that is no such key, and without the package that reads it."""
        _, der = _load(pem, origin)
        return cls(id_of(der), pem, origin)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether it has made this signature over this data."""
        from cryptography.exceptions import InvalidSignature

        key, _ = _load(self.pem, self.origin)
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def _load(pem: str, origin: str) -> tuple[Ed25519PublicKey, bytes]:
    """A key and its DER."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
    except ImportError as error:
        raise ClientError(
            f"verifying signatures needs the package cryptography: pip install 'rcmae[verify]' ({error})"
        ) from error
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ClientError(f"{origin} holds no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ClientError(f"{origin} holds a key that is not Ed25519, which the service signs with: name another file")
    return key, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def keys_in(file: Path) -> list[PublicKey]:
    """The public keys of a file, of which it may hold several. Raises `ClientError` if there is none."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"{file} cannot be read: {error}") from error
    found = [PublicKey.of(f"{pem}\n", str(file)) for pem in _PEM.findall(text)]
    if not found:
        raise ClientError(f"{file} holds no public key in PEM: `rcmae backbones keys` prints those of a service")
    return found


def config_folder() -> Path:
    """The user's folder for settings of this program."""
    named = os.environ.get("APPDATA" if sys.platform == "win32" else "XDG_CONFIG_HOME")
    return (Path(named) if named else Path.home() / ".config") / "rcmae"


class KnownKeys:
    """The keys that this client trusts, by the address of the service: those that it listed at the first use."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or config_folder() / KNOWN_KEYS

    def _all(self) -> dict[str, list[str]]:
        """The keys in PEM, by address."""
        try:
            found = json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ClientError(f"{self.file}, the list of known keys, cannot be read: {error}") from error
        if not isinstance(found, dict) or not all(isinstance(pems, list) for pems in found.values()):
            raise ClientError(f"{self.file}, the list of known keys, is damaged: correct or remove it")
        return {str(url): [str(pem) for pem in pems] for url, pems in found.items()}

    def of(self, url: str) -> list[PublicKey]:
        """The keys of a service; empty if none is known yet."""
        return [PublicKey.of(pem, f"{self.file} ({url})") for pem in self._all().get(url, [])]

    def everybodys(self) -> list[PublicKey]:
        """The keys of all services."""
        return [PublicKey.of(pem, f"{self.file} ({url})") for url, pems in self._all().items() for pem in pems]

    def remember(self, url: str, keys: Iterable[PublicKey]) -> None:
        """Trust these keys of a service from now on."""
        known = self._all() | {url: [key.pem for key in keys]}
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self.file, json.dumps(known, indent=2).encode(), 0o600)


# --- what is signed ---------------------------------------------------------------------------------------------------


def sums_of(data: bytes) -> dict[str, str]:
    """The sha256 of each file that a checksum file names, by path."""
    lines = (_LINE.fullmatch(line) for line in data.decode(errors="replace").splitlines())
    return {line[2]: line[1] for line in lines if line}


def signer_of(sums: bytes, signature: bytes, trusted: Sequence[PublicKey], what: str) -> PublicKey:
    """The trusted key that signed some checksums. Raises `SignatureError` if none of them did."""
    for key in trusted:
        if key.verifies(signature, sums):
            return key
    ids = ", ".join(key.id for key in trusted) or "none"
    raise SignatureError(f"the signature of {what} is wrong: none of the trusted keys ({ids}) made it over these sums")


def must_list_what_is_signed(view: VersionView, form: PullFormat, sums: bytes, signature: bytes) -> None:
    """Raises `SignatureError` unless the files that would be pulled are those that the signed checksums name."""
    signed, name = sums_of(sums), f"{view.name}:{view.version}"
    if form == ALL:
        signed |= {SUMS: hashlib.sha256(sums).hexdigest(), SIGNATURE_FILE: hashlib.sha256(signature).hexdigest()}
    listed = {file.path: file.sha256 for file in view.files}
    prefix = "" if form == ALL else f"{form}/"
    for path in sorted({*signed, *listed}):
        if path.startswith(prefix) and signed.get(path) != listed.get(path):
            raise SignatureError(f"{name}: {path} {_difference(path, signed, listed)}; nothing is pulled")


def _difference(path: str, signed: Mapping[str, str], listed: Mapping[str, str]) -> str:
    if path not in listed:
        return "is signed, and the service does not list it"
    if path not in signed:
        return "is listed by the service, and not signed"
    return f"has the sha256 {listed[path]}, and {signed[path]} is signed"


# --- folders that were pulled -----------------------------------------------------------------------------------------


def verify_folder(folder: Path, trusted: Callable[[], Sequence[PublicKey]]) -> PublicKey:
    """The trusted key that signed all files of a pulled folder.

    Raises `SignatureError` if a file is missing, changed or not signed, or the signature is missing or no trusted
    key's. ``trusted`` is called once the files are known to match their checksums.
    """
    if not (folder / SUMS).is_file():
        raise SignatureError(f"{folder} is not a folder that was pulled: it has no {SUMS}")
    found = _digests(folder)
    _must_match(folder, sums_of((folder / SUMS).read_bytes()), found)
    whole = not (folder / SIGNED_SUMS).is_file()
    sums = (folder / (SUMS if whole else SIGNED_SUMS)).read_bytes()
    if not (folder / SIGNATURE_FILE).is_file():
        raise SignatureError(
            f"{folder} has no {SIGNATURE_FILE}. Its files match their checksums, and nothing says who made these: pull "
            "it with --verify"
        )
    if not whole:
        _must_be_one_format(folder, sums_of(sums), found)
    return signer_of(sums, (folder / SIGNATURE_FILE).read_bytes(), trusted(), str(folder))


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a folder but the checksums and the signature, by its path there."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: _digest(path) for name, path in names.items() if name not in OWN_FILES}


def _digest(path: Path) -> str:
    if path.is_dir():
        raise SignatureError(f"{path} is a link to a folder, which no version has: remove it")
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _must_match(folder: Path, named: Mapping[str, str], found: Mapping[str, str]) -> None:
    for path in sorted({*named, *found} - OWN_FILES):
        if path not in found:
            raise SignatureError(f"{folder / path} is missing: {SUMS} names it")
        if path not in named:
            raise SignatureError(f"{folder / path} is not of the version: {SUMS} does not name it")
        if named[path] != found[path]:
            raise SignatureError(f"{folder / path} was changed: its sha256 is {found[path]}, not {named[path]}")


def _must_be_one_format(folder: Path, signed: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises `SignatureError` unless the files are exactly those of one format of the signed checksums."""
    for form in get_args(BackboneFormat):
        prefix = f"{form}/"
        files = {path.removeprefix(prefix): digest for path, digest in signed.items() if path.startswith(prefix)}
        if files and files == found:
            return
    raise SignatureError(f"the files of {folder} are none of the formats that {SIGNED_SUMS} names, or were changed")
