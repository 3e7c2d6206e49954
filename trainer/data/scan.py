"""Scanning a dataset's files: where each image's bytes are, and its label."""

from __future__ import annotations

from dataclasses import replace

from trainer.data.labels import without_identifiers
from trainer.data.scan_folder import scan_folder
from trainer.data.scan_parquet import scan_parquet
from trainer.data.scan_tars import scan_tars
from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.spec.dataset import DatasetSpec


def scan(files: Files, dataset: DatasetSpec) -> Table:
    """Find the images in a dataset's files, and their labels; all of them, whatever the spec includes.

    Raises `DataError` for a damaged file or if there are no images, `StorageError` for a file that cannot be read.
    """
    if dataset.image_column and files.kind != "parquet":
        raise DataError(
            f"dataset.image_column: {dataset.image_column!r} is a column of Parquet files, and {files.uri} has "
            f"{files.kind} files: remove it"
        )
    if files.kind == "folder":
        table = scan_folder(files, dataset.label_column)
    elif files.kind == "tar":
        table = scan_tars(files, dataset.label_column)
    else:
        table = scan_parquet(files, dataset.image_column, dataset.label_column)
    if not len(table):
        raise DataError(f"dataset.uri: no images in the {len(files.names)} {files.kind} files of {files.uri}")
    if dataset.label_column:
        return table
    labels, notices = without_identifiers(table.labels)
    return replace(table, labels=labels, notices=(*table.notices, *notices))
