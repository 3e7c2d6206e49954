"""Credentials in text that people sent: found, so that they are refused, and masked wherever a refusal shows them."""

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
"""What stands before the host: `s3://key:secret@bucket`, or the same without a scheme. A secret may hold slashes."""
_QUERY: Final = re.compile(rf"(?<=[?&;#])({_NAMES})=([^&;#\s'\"]*)", re.IGNORECASE)
_TOKEN: Final = re.compile(r"rcmae_[A-Za-z0-9_-]{16,}|(?<=bearer )[^\s'\"]+", re.IGNORECASE)
_SECRET_FIELD: Final = re.compile(r"secret|password|passwd|credential|token|api_?key|access_?key|private_?key", re.I)


def credentials_in(uri: str) -> str | None:
    """How a URI carries credentials, in words; None where it does not."""
    if _USER.search(uri):
        return "a user or key before the host"
    found = _QUERY.search(uri)
    return f"credentials in its query ({found.group(1)})" if found else None


def masked(value: Any, field: str = "") -> Any:
    """A value as it may be shown. ``field`` is its name: that of a secret hides all of it."""
    if field and _SECRET_FIELD.search(field.rpartition(".")[2]) and value is not None:
        return MASK
    if isinstance(value, str):
        return _TOKEN.sub(MASK, _QUERY.sub(rf"\1={MASK}", _USER.sub(f"{MASK}@", value)))
    if isinstance(value, Mapping):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, (list, tuple)) else value
