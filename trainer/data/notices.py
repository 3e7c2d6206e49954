"""What a dataset's owner should know: decisions that were made for them, and data that could not be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from trainer.logger import logger
from trainer.protocol.names import TAG_DATA_NOTICES, TAG_LENGTH
from trainer.tracking.interface import Recorder

NOTICE_LENGTH: Final = 600
"""The most characters of each notice on the job's page."""


@dataclass(frozen=True)
class Notice:
    """One thing to know about a dataset."""

    code: str
    """Stable, for programs, for example `splits_together`."""
    message: str
    """A sentence for people, with what to do."""


def tell(recorder: Recorder, notices: Sequence[Notice]) -> None:
    """Tell the data's owner, in the log and on the job's page, what was decided for them and what is not used."""
    for notice in notices:
        logger.warning("%s", notice.message)
    shown = [{"code": each.code, "message": each.message[:NOTICE_LENGTH]} for each in notices]
    while len(text := json.dumps(shown, ensure_ascii=False)) > TAG_LENGTH:
        shown.pop()
    recorder.tag({TAG_DATA_NOTICES: text})
