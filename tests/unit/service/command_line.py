"""The command line in this process."""

from __future__ import annotations

import pytest

from service.cli import main


def rcmae(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output without the log of the service, which runs in this process, and standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    streams = capsys.readouterr()
    told = "".join(line for line in streams.out.splitlines(True) if '"event": ' not in line)
    return int(ended.value.code or 0), told, streams.err
