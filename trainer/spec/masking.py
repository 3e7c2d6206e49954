"""Credentials in users' text: detecting them, to refuse the text, and masking them in messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

MASK: Final = "***"

_NAMES: Final = (
    r"x-amz-[a-z-]*|aws_?access_?key_?id|awsaccesskeyid|signature|sig|token|[a-z_.-]*(?:secret|password|passwd|"
    r"credential|token|api_?key|access_?key|private_?key)[a-z_.-]*"
)
_USER: Final = re.compile(r"(?<=://)(?:[^/?#@\s'\"]*:(?!\d+/)[^\s'\"]*|[^/?#@\s'\"]*)@|^[^\s/:@]+:(?!//)[^\s@]+@")
"""User and secret before the host: `s3://key:secret@bucket`, or without a scheme. A secret may contain slashes."""
_QUERY: Final = re.compile(rf"(?<=[?&;#])({_NAMES})=([^&;#\s'\"]*)", re.IGNORECASE)
_TOKEN: Final = re.compile(r"(?-i:rcmae_)[A-Za-z0-9_-]{16,}|(?<=bearer )[^\s'\"]+", re.IGNORECASE)
"""A token's text, whose prefix is in lower case: in upper case it is that of a setting's name."""
_SECRET_FIELD: Final = re.compile(r"secret|password|passwd|credential|token|api_?key|access_?key|private_?key", re.I)


def credentials_in(uri: str) -> str | None:
    """Describes the credentials in a URI; None if it has none."""
    if _USER.search(uri):
        return "a user or key before the host"
    match = _QUERY.search(uri)
    return f"credentials in its query ({match.group(1)})" if match else None


def masked(value: Any, field: str = "") -> Any:
    """A value as it may be shown to users. If ``field``, its name, is that of a secret, all of it is masked."""
    if field and _SECRET_FIELD.search(field.rpartition(".")[2]) and value is not None:
        return MASK
    if isinstance(value, str):
        return _TOKEN.sub(MASK, _QUERY.sub(rf"\1={MASK}", _USER.sub(f"{MASK}@", value)))
    if isinstance(value, Mapping):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, (list, tuple)) else value
