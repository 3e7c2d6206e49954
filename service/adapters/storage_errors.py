"""What an error of a disk or of S3 says."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from fsspec.exceptions import FSTimeoutError

ANSWERS: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
     errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EBUSY, errno.ETXTBSY, errno.ENOSPC, errno.EDQUOT,
     errno.EROFS}
)  # fmt: skip
"""Errors by which a disk refuses one request."""
CREDENTIALS: Final = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or RCMAE_S3_PROFILE"
SERVER: Final = "Check AWS_ENDPOINT_URL and that the server runs"


def explanation(error: Exception) -> str:
    """What went wrong, and what to do about it where that is known."""
    code = s3_code(error)
    if code == "NoSuchBucket":
        return "there is no such bucket: create it, or correct the URI"
    if code and isinstance(error, PermissionError):
        return f"the credentials were refused ({code}): {CREDENTIALS}"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)):
        return f"{error}: {CREDENTIALS}"
    if isinstance(error, FSTimeoutError):
        return f"did not respond in time. {SERVER}"
    if isinstance(error, (boto.BotoCoreError, aiohttp.ClientError, ValueError)):
        return f"cannot be reached: {error}. {SERVER}"
    return str(error) or type(error).__name__


def is_answer(error: Exception) -> bool:
    """Whether the storage works, and refuses one request."""
    response = _s3_response(error)
    if response is not None:
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)) < 500
    return isinstance(error, OSError) and error.errno in ANSWERS


def s3_code(error: BaseException) -> str | None:
    """S3's error code behind an exception; None if there is none."""
    response = _s3_response(error)
    return None if response is None else str(response.get("Error", {}).get("Code"))


def _s3_response(error: BaseException) -> Mapping[str, Any] | None:
    """S3's response behind an exception; None if there is none."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, boto.ClientError):
            response: Mapping[str, Any] = cause.response
            return response
        cause = cause.__cause__
    return None
