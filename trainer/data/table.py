"""The table of a dataset's images: where each one's bytes are, and its label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.temporary import atomic_write


@dataclass(frozen=True)
class Table:
    """Every image of a dataset, in order."""

    names: Sequence[str]
    """Each image's name in messages."""
    file: NDArray[np.int32]
    """Number of the file that holds it."""
    first: NDArray[np.int64]
    """In a folder or tar, the offset of its bytes within the file; in Parquet, the row group."""
    second: NDArray[np.int64]
    """In a folder or tar, the number of its bytes; in Parquet, the row within the row group."""
    labels: Labels
    notices: tuple[Notice, ...] = ()
    passed_over: dict[str, int] = field(default_factory=dict)
    """Suffixes of the members of shards that are neither images nor labels, and how many there are of each."""

    def __len__(self) -> int:
        return len(self.file)

    def select(self, rows: NDArray[np.int64]) -> Self:
        """The table with only some of its rows."""
        return replace(
            self,
            names=[self.names[row] for row in rows],
            file=self.file[rows],
            first=self.first[rows],
            second=self.second[rows],
            labels=self.labels.select(rows),
        )

    def save(self, file: Path) -> None:
        """Write the table to a file atomically: two jobs of a node may write the same one at once."""
        text = {
            "names": list(self.names),
            "classes": self.labels.classes,
            "source": self.labels.source,
            "notices": [asdict(notice) for notice in self.notices],
            "passed_over": self.passed_over,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file, fsync=False) as partial, partial.open("wb") as stream:
            np.savez(
                stream,
                files=self.file, first=self.first, second=self.second, labels=self.labels.values,
                text=np.frombuffer(json.dumps(text).encode(), dtype=np.uint8),
            )  # fmt: skip

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as arrays:
            text: dict[str, Any] = json.loads(arrays["text"].tobytes())
            return cls(
                names=text["names"],
                file=arrays["files"],
                first=arrays["first"],
                second=arrays["second"],
                labels=Labels(arrays["labels"], tuple(text["classes"]), text["source"]),
                notices=tuple(Notice(**notice) for notice in text["notices"]),
                passed_over=text["passed_over"],
            )
