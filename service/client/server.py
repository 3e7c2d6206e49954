"""Which server the command line talks to."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

from service.client.errors import ClientError

URL_VARIABLE: Final = "RCMAE_URL"
TOKEN_VARIABLE: Final = "RCMAE_TOKEN"  # noqa: S105 - a name, not a token
STATE_DIR_VARIABLE: Final = "RCMAE_STATE_DIR"
DEFAULT_STATE_DIR: Final = ".rcmae"
STATE_FILE: Final = "stack.json"
TOKEN_FILE: Final = "token"  # noqa: S105 - a name, not a token
HOST: Final = "127.0.0.1"


class Home(NamedTuple):
    """The folder in which a state file was written. A copy of the folder has another inode; a folder that was moved, or
    is reached through a link, has the same one.

    A new folder may get the inode of one that was removed, but not while a process works in the removed one, as those
    of a stack do.
    """

    inode: int
    device: int
    path: str

    @classmethod
    def of(cls, folder: Path) -> Home:
        """Raises `FileNotFoundError` for a folder that does not exist."""
        found = folder.stat()
        return cls(found.st_ino, found.st_dev, str(folder.resolve()))

    def is_at(self, folder: Path) -> bool:
        """Whether this is the folder itself, not a copy. A device may have another number after a restart."""
        here = Home.of(folder)
        return self.inode == here.inode and (self.device == here.device or self.path == here.path)

    @property
    def still_there(self) -> bool:
        """Whether its path still leads to the folder; also true where this cannot be determined."""
        return self.is_reached_by(Path(self.path))

    def is_reached_by(self, path: Path) -> bool:
        """Whether a path, which may lead nowhere, leads to the folder; also true where this cannot be determined."""
        try:
            return self.is_at(path)
        except OSError as error:
            return error.errno not in {errno.ENOENT, errno.ENOTDIR}


class Server(NamedTuple):
    """The address of a service, and a token."""

    url: str
    token: str
    token_file: Path | None = None
    """The file that the token is from, if that is a local stack's."""


def state_dir() -> Path:
    """The state folder of a local stack: RCMAE_STATE_DIR, or `.rcmae` in the working directory."""
    return Path(os.environ.get(STATE_DIR_VARIABLE) or DEFAULT_STATE_DIR).expanduser().absolute()


def find_server() -> Server:
    """The server of RCMAE_URL and RCMAE_TOKEN, or else of a local stack. Raises `ClientError`, saying what to set."""
    url, token = os.environ.get(URL_VARIABLE), os.environ.get(TOKEN_VARIABLE)
    if url and not token:
        raise ClientError(f"{URL_VARIABLE} is set and {TOKEN_VARIABLE} is not: set it to your token for {url}")
    if url and token:
        return Server(url, token)
    folder = state_dir()
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        home = state.get("home")  # files of earlier releases have none
        if home and not Home(*home).is_at(folder):
            raise ClientError(
                f"{folder} is a copy of the state folder {Home(*home).path}, and no stack runs in it: start one with "
                "`rcmae up`"
            )
        port = state["ports"]["api"]
        url = f"http://{HOST}:{port}"
        if token:
            return Server(url, token)
        return Server(url, (folder / TOKEN_FILE).read_text().strip(), folder / TOKEN_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClientError(
            f"there is no stack in {folder}: start one with `rcmae up`, name its folder with {STATE_DIR_VARIABLE}, "
            f"or name a server with {URL_VARIABLE} and {TOKEN_VARIABLE}"
        ) from error
