"""Creates buckets in a deployment's own S3, and uploads datasets: `python -m service.adapters.buckets`, in a container.

    make NAME ...                 create the buckets that do not exist yet
    upload FOLDER URI NAME        copy a folder's files to URI/NAME

The environment gives S3's endpoint and credentials.
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
"""How long to retry: S3 responds some seconds before it can store anything."""


def make(names: list[str]) -> None:
    """Create buckets, except those that exist. Raises S3's error if that still fails after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        fs = S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        try:
            existing = {str(path).rstrip("/") for path in fs.ls("", detail=False)}
            for name in names:
                if name not in existing:
                    fs.mkdir(name)
        except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def upload(folder: Path, uri: str) -> int:
    """Copy all files below a folder, except hidden ones, to the same paths below a URI. Returns their number."""
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
    make_parser = commands.add_parser("make", help="create the buckets that do not exist yet")
    make_parser.add_argument("names", nargs="+")
    upload_parser = commands.add_parser("upload", help="copy a folder's files into a bucket")
    upload_parser.add_argument("folder", type=Path)
    upload_parser.add_argument("uri", help="URI of the bucket")
    upload_parser.add_argument("name", help="name of the dataset in the bucket")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make(arguments.names)
        return
    uri = f"{arguments.uri.rstrip('/')}/{arguments.name.strip('/')}"
    count = upload(arguments.folder, uri)
    if not count:
        sys.exit(f"{arguments.folder} has no files: mount the folder of the dataset there")
    print(f"{count} files are at {uri}")  # noqa: T201


if __name__ == "__main__":
    main()
