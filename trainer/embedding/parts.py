"""The Parquet files of embeddings: which rows each has, how it is written, and whether one that is there is whole.

A file is written whole and atomically. Its pages have checksums and its metadata describe the network and the images,
so a later attempt can tell whether a file is the one that it would write.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.images import Images
from trainer.data.labels import UNLABELLED
from trainer.logger import logger
from trainer.protocol.embeddings import FEATURES, KEY, LABEL, METADATA, PATCH_TOKENS, Embeddings, part_file
from trainer.storage import Store


@dataclass(frozen=True)
class Parts:
    """The files of a dataset's embeddings."""

    store: Store
    """The run's artifact folder."""
    images: Images
    described: Embeddings

    def __len__(self) -> int:
        return self.described.files

    def rows(self, number: int) -> NDArray[np.int64]:
        """The rows of the dataset that a file has, ascending."""
        first = number * self.described.rows_per_file
        return np.arange(first, min(first + self.described.rows_per_file, len(self.images)))

    def write(self, number: int, features: NDArray[np.floating], patches: NDArray[np.float16] | None) -> None:
        """Store a file: features (n, D) of its rows, and their patch tokens (n, L, D) where they are wanted."""
        columns = [*self._names(number), _lists(features)]
        if patches is not None:
            columns.append(_lists(patches.reshape(len(patches), -1)))
        buffer = io.BytesIO()
        pq.write_table(
            pa.Table.from_arrays(columns, schema=self._schema),
            buffer,
            compression="zstd",
            use_dictionary=[LABEL],
            write_page_checksum=True,
        )
        self.store.write(part_file(number), buffer.getvalue())

    def is_whole(self, number: int) -> bool:
        """Whether a file is there, undamaged, of the same network and images, and has its rows."""
        name = part_file(number)
        if not self.store.exists(name):
            return False
        try:
            table = pq.read_table(io.BytesIO(self.store.read(name)), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:  # what pyarrow raises for damaged data, some of it as OSError
            logger.warning("%s is damaged, and is written again: %s", name, error)
            return False
        keys, labels = self._names(number)
        same = table.schema.equals(self._schema, check_metadata=True)
        if not same or table[KEY].combine_chunks() != keys or table[LABEL].combine_chunks() != labels:
            logger.warning("%s is of another network or of other images, and is written again", name)
            return False
        return True

    def _names(self, number: int) -> tuple[pa.Array, pa.Array]:
        """Keys and labels of a file's rows."""
        rows, table = self.rows(number), self.images.index.table
        classes = table.labels.classes
        labels = [None if label == UNLABELLED else classes[label] for label in table.labels.values[rows].tolist()]
        return pa.array([table.names[row] for row in rows], pa.string()), pa.array(labels, pa.string())

    @property
    def _schema(self) -> pa.Schema:
        told = self.described
        value = pa.float16() if told.dtype == "float16" else pa.float32()
        fields = [
            pa.field(KEY, pa.string(), nullable=False),
            pa.field(LABEL, pa.string()),
            _list_field(FEATURES, value, told.width),
        ]
        if told.patch_tokens:
            patches, width = told.patch_tokens
            fields.append(_list_field(PATCH_TOKENS, pa.float16(), patches * width))
        return pa.schema(fields, {METADATA: told.model_dump_json().encode()})


def _list_field(name: str, value: pa.DataType, length: int) -> pa.Field:
    # Named as Parquet names it, so that the schema that is read back is this one.
    return pa.field(name, pa.list_(pa.field("element", value), length), nullable=False)


def _lists(values: NDArray[Any]) -> pa.Array:
    """Rows (n, m) as lists of fixed size, without a copy."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(pa.field("element", flat.type), values.shape[1]))
