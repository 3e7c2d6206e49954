"""Buckets of a deployment's own S3, and datasets in them: `python -m service.adapters.buckets`, in a container there.

    make NAME ...                 make what is not there yet
    upload FOLDER URI NAME        copy a folder's files to URI/NAME

Where S3 is, and the credentials, are the environment's as everywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Final

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from s3fs import S3FileSystem

PATIENCE_S: Final = 60.0
"""S3 answers some seconds before it can store."""


def make(names: list[str]) -> None:
    """Make buckets; those that are there stay as they are. Raises what S3 says when it cannot be done in a minute."""
    end = time.monotonic() + PATIENCE_S
    while True:
        fs = S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        try:
            there = {str(path).rstrip("/") for path in fs.ls("", detail=False)}
            for name in names:
                if name not in there:
                    fs.mkdir(name)
        except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError):
            if time.monotonic() > end:
                raise
            time.sleep(1)
        else:
            return


def upload(folder: Path, uri: str) -> int:
    """Copy every file below a folder, hidden ones left out, to the same place below a URI; gives how many."""
    fs = S3FileSystem(use_listings_cache=False)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    root = uri.removeprefix("s3://").rstrip("/")
    fs.put([str(file) for file in files], [f"{root}/{file.relative_to(folder).as_posix()}" for file in files])
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.adapters.buckets")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make", help="make buckets that are not there yet")
    made.add_argument("names", nargs="+")
    copied = commands.add_parser("upload", help="copy a folder's files into a bucket")
    copied.add_argument("folder", type=Path)
    copied.add_argument("uri", help="of the bucket")
    copied.add_argument("name", help="of the dataset there")
    given = parser.parse_args()
    if given.command == "make":
        make(given.names)
        return
    uri = f"{given.uri.rstrip('/')}/{given.name.strip('/')}"
    count = upload(given.folder, uri)
    if not count:
        sys.exit(f"there are no files in {given.folder}: mount the folder of the dataset there")
    print(f"{count} files are at {uri}")  # noqa: T201


if __name__ == "__main__":
    main()
