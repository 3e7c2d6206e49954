"""How the command line names the network that a job measures or uses."""

from __future__ import annotations

import re
from typing import Any, Final

from service.client.data import absolute

METAVAR: Final = "SUBJECT"
HELP: Final = (
    "The network: NAME, NAME:3 or NAME@alias of a backbone; JOB or JOB:a1/00000100, a checkpoint of a pretraining job; "
    "or a path or s3:// URI of weights from elsewhere."
)
_CHECKPOINT: Final = re.compile(r"(job-[a-z0-9]+)(?::(?:checkpoints/)?(a[1-9][0-9]*/[0-9]+))?")


def subject(text: str) -> str | dict[str, Any]:
    """The subject as a spec has it.

    A backbone whose name is written like a job's id is named with its version or an alias, such as ``job-7f3k2m@best``.

    >>> subject("job-7f3k2m:a1/00000100")
    {'job': 'job-7f3k2m', 'checkpoint': 'checkpoints/a1/00000100'}
    """
    found = _CHECKPOINT.fullmatch(text)
    if found:
        checkpoint = {"checkpoint": f"checkpoints/{found[2]}"} if found[2] else {}
        return {"job": found[1], **checkpoint}
    if "/" in text or text.startswith("."):
        return {"uri": absolute(text)}
    return text
