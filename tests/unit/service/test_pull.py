"""Pulling a backbone: whole or not at all, checked, and going on wherever it was broken off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listed_version import BASE, CONFIG, DATE, FILES, HEAVY, WEIGHTS, part_of, serve, sha256
from scripted_server import Answer, Asked, ScriptedServer, job, problem

from service.cli import main
from service.client import download
from service.client.errors import ApiError, ConnectionFailed, DownloadError
from service.client.sdk import Client


def cut(server: ScriptedServer, *afters: int) -> None:
    """Break the connection after so many bytes of the weights, once for each."""
    left = list(afters)
    server.routes["GET", HEAVY] = lambda asked: part_of(WEIGHTS, asked, left.pop(0) if left else None)


def broken_off(server: ScriptedServer) -> None:
    """After 200,000 bytes of the weights the service is away for good."""
    server.routes["GET", HEAVY] = lambda asked: (
        problem(503, "unavailable", "away") if "range" in asked.headers else part_of(WEIGHTS, asked, 200_000)
    )


def ranges(server: ScriptedServer, path: str = HEAVY) -> list[str | None]:
    return [asked.headers.get("range") for asked in server.asked if asked.path == path]


def beside(out: Path) -> list[str]:
    """What lies beside the target."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "secret", patience_s=0.3) as made:
        yield made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / "digits"


def whole(out: Path) -> None:
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "SHA256SUMS"} == {
        "config.json": CONFIG, "model.safetensors": WEIGHTS,
    }  # fmt: skip
    assert beside(out) == []


# --- what is pulled ---------------------------------------------------------------------------------------------------


def test_all_of_a_version_lies_as_the_service_has_it(server, client, out):
    sums = b"".join(f"{sha256(data)}  {path}\n".encode() for path, data in FILES.items())
    serve(server, FILES | {"SHA256SUMS": sums})
    assert client.pull("digits", out, version="best", form="all").version == 3
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == FILES | {"SHA256SUMS": sums}


def test_the_sums_of_one_format_can_be_checked_with_sha256sum(server, client, out):
    serve(server)
    client.pull("digits", out)
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == ["config.json: OK", "model.safetensors: OK"]


@pytest.mark.parametrize("path", ["hf/../../evil", "/etc/evil", "hf/..\\..\\evil", "hf/C:\\evil", "hf/a/../../../evil"])
@pytest.mark.parametrize("form", ["hf", "all"])
def test_a_path_that_leads_out_is_refused_before_anything_is_brought(server, client, out, path, form):
    serve(server, {"hf/config.json": CONFIG, path: b"evil"})
    if form == "hf" and not path.startswith("hf/"):
        client.pull("digits", out, form=form)
        assert not Path("/etc/evil").exists()
        return
    with pytest.raises(DownloadError, match="outside its folder"):
        client.pull("digits", out, form=form)
    assert [asked.path for asked in server.asked] == ["/v1/backbones/digits/versions/main"]
    assert [path for path in out.parent.parent.rglob("*") if path.is_file()] == []


# --- broken connections -----------------------------------------------------------------------------------------------


def test_a_pull_goes_on_where_the_connection_broke(server, client, out):
    serve(server)
    cut(server, 200_000, 100_000)
    seen: list[tuple[int, int]] = []
    client.pull("digits", out, progress=lambda done, total: seen.append((done, total)))
    whole(out)
    assert ranges(server) == [None, "bytes=200000-", "bytes=300000-"]
    conditions = [asked.headers.get("if-range") for asked in server.asked if asked.path == HEAVY]
    assert conditions == [None, *[f'"{sha256(WEIGHTS)}"'] * 2]
    assert seen == sorted(seen)
    assert seen[-1] == (len(WEIGHTS) + len(CONFIG),) * 2


def test_a_pull_outlives_a_service_that_restarts(server, out):
    serve(server)
    cut(server, 200_000)
    with Client(server.url, "secret", patience_s=30) as client:
        pull = threading.Thread(target=lambda: client.pull("digits", out))
        pull.start()
        while not ranges(server):
            time.sleep(0.005)
        with server.away():
            time.sleep(0.2)
        pull.join()
    whole(out)
    assert ranges(server)[-1] in {"bytes=200000-", None}


def test_a_connection_that_breaks_right_at_the_end_needs_no_byte_more(server, client, out):
    serve(server)
    server.on("GET", HEAVY, Answer(503, b""))
    with pytest.raises(Exception, match="503"):
        client.pull("digits", out)
    serve(server)
    staging = out.parent / ".digits.rcmae-by-hand"
    staging.mkdir()
    with (staging / "x").open("ab") as output:
        output.write(WEIGHTS)
        download.fetch(client._connection, HEAVY, output, download.Patience(0.3, server.url), None, None)
    assert (staging / "x").read_bytes() == WEIGHTS
    assert ranges(server)[-1] == f"bytes={len(WEIGHTS)}-"


def test_a_file_that_is_another_by_then_is_told(server, client, out):
    """What has come is of no use: all of the other comes, and is not what was listed."""
    serve(server)
    left = [100_000]
    server.routes["GET", HEAVY] = lambda asked: part_of(
        WEIGHTS if left else WEIGHTS[::-1], asked, left.pop() if left else None
    )
    with pytest.raises(DownloadError, match=r"model\.safetensors: sha256 is"):
        client.pull("digits", out)
    assert not out.exists()
    assert beside(out) == []


# --- killed processes -------------------------------------------------------------------------------------------------


def test_a_pull_that_was_killed_goes_on_when_it_is_asked_for_again(server, client, out):
    serve(server)
    held = threading.Event()

    def slowly(_: Asked) -> Answer:
        def pieces() -> Iterator[bytes]:
            yield WEIGHTS[:300_000]
            held.wait(30)

        return Answer(200, headers={"Content-Length": str(len(WEIGHTS))}, pieces=pieces())

    server.routes["GET", HEAVY] = slowly
    command = [sys.executable, "-m", "service.cli", "backbones", "pull", "digits", "--out", str(out)]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while sum(file.stat().st_size for file in out.parent.rglob("*.part")) < 300_000:
            assert time.monotonic() < end, "nothing came"
            assert killed.poll() is None
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait()
        held.set()
    assert not out.exists()
    assert beside(out) != []
    serve(server)
    server.asked.clear()
    client.pull("digits", out)
    whole(out)
    assert ranges(server) == ["bytes=300000-"]
    assert ranges(server, f"{BASE}/files/hf/config.json") == [], "it had come whole"


@pytest.mark.parametrize("harm", ["begin", "longer", "whole file"])
def test_what_is_left_of_an_earlier_pull_is_checked(server, client, out, harm):
    serve(server)
    broken_off(server)
    with pytest.raises(ApiError):
        client.pull("digits", out)
    (part,) = out.parent.rglob("*.part")
    if harm == "begin":
        with part.open("r+b") as data:
            data.write(b"harm")
    elif harm == "longer":
        part.write_bytes(WEIGHTS + b"more")
    else:
        (part.parent / "config.json").write_bytes(b"[]")
        (part.parent / "stray.bin").write_bytes(b"x")
    serve(server)
    client.pull("digits", out)
    whole(out)


def test_what_another_version_left_is_removed_when_one_has_come(server, client, out):
    serve(server)
    broken_off(server)
    with pytest.raises(ApiError):
        client.pull("digits", out)
    assert len(beside(out)) == 1
    serve(server, commit="d" * 40)
    client.pull("digits", out)
    whole(out)


# --- deletion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone",
    [
        problem(404, "version_not_found", "there is no version 'digits:3'"),
        problem(410, "version_gone", "digits:3 was deleted in MLflow"),
    ],
)
def test_a_version_that_is_deleted_meanwhile_is_told_and_leaves_nothing(server, client, out, gone):
    serve(server)
    server.routes["GET", HEAVY] = lambda asked: gone if "range" in asked.headers else part_of(WEIGHTS, asked, 100_000)
    with pytest.raises(DownloadError, match=r"digits:3 was deleted while it was pulled; nothing of it is kept"):
        client.pull("digits", out)
    assert not out.exists()
    assert beside(out) == []


# --- what is there ----------------------------------------------------------------------------------------------------


def test_force_replaces_a_folder_that_was_pulled_as_a_whole(server, client, out):
    serve(server, {"hf/old.json": b"old"})
    client.pull("digits", out)
    serve(server)
    with pytest.raises(FileExistsError, match="--force"):
        client.pull("digits", out)
    client.pull("digits", out, force=True)
    whole(out)


def test_force_keeps_what_is_there_until_the_new_one_has_come(server, client, out):
    serve(server, {"hf/old.json": b"old"})
    client.pull("digits", out)
    serve(server)
    server.on("GET", HEAVY, Answer(200, WEIGHTS[::-1]))
    with pytest.raises(DownloadError):
        client.pull("digits", out, force=True)
    assert {path.name for path in out.iterdir()} == {"old.json", "SHA256SUMS"}
    assert beside(out) == []


def test_force_replaces_nothing_that_was_not_pulled(server, client, out):
    serve(server)
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    link, file = out.with_name("link"), out.with_name("file")
    link.symlink_to(out)
    file.write_text("mine")
    for target in (out, link, file):
        with pytest.raises(FileExistsError, match="not a folder that was pulled"):
            client.pull("digits", target, force=True)
    assert (out / "thesis.tex").read_text() == file.read_text() == "mine"
    (out / "thesis.tex").unlink()
    client.pull("digits", out, force=True)
    assert (out / "model.safetensors").read_bytes() == WEIGHTS


def test_a_folder_whose_replacing_was_cut_off_is_back(server, client, out):
    serve(server, {"hf/old.json": b"old"})
    client.pull("digits", out)
    out.rename(out.with_name(".digits.rcmae-old"))  # as a process leaves it that is killed between the two steps
    serve(server)
    with pytest.raises(FileExistsError):
        client.pull("digits", out)
    assert (out / "old.json").read_bytes() == b"old"
    client.pull("digits", out, force=True)
    whole(out)


@pytest.mark.parametrize("name", ["digits", "digits[1]"])
def test_what_had_come_of_other_versions_goes_with_the_first_that_is_whole(server, client, out, name):
    target = out.with_name(name)
    for left in (name, "neighbour"):
        (out.parent / f".{left}.rcmae-0123456789abcdef.partial").mkdir(parents=True)
    serve(server)
    client.pull("digits", target)
    assert sorted(path.name for path in out.parent.iterdir()) == [".neighbour.rcmae-0123456789abcdef.partial", name]


def test_two_pulls_into_one_folder_do_not_meet(server, client, out):
    serve(server)
    begun, held = threading.Event(), threading.Event()

    def slowly(asked: Asked) -> Answer:
        begun.set()
        held.wait(30)
        return part_of(WEIGHTS, asked)

    server.routes["GET", HEAVY] = slowly
    errors: list[Exception] = []
    first = threading.Thread(target=lambda: client.pull("digits", out))
    first.start()
    assert begun.wait(30)
    with Client(server.url, "secret", patience_s=0.3) as other:
        try:
            other.pull("digits", out)
        except DownloadError as error:
            errors.append(error)
        held.set()
        first.join()
        whole(out)
        other.pull("digits", out.with_name("elsewhere"))
    assert "another process pulls into" in str(errors[0])


def test_a_lock_that_its_process_left_holds_nobody(server, client, out):
    serve(server)
    out.with_name(".digits.rcmae-lock").write_bytes(b"")
    client.pull("digits", out)
    whole(out)


# --- signed links -----------------------------------------------------------------------------------------------------


def test_a_signed_link_is_followed_without_the_token_and_goes_on_where_it_broke(server, client, out):
    storage = ScriptedServer()
    try:
        serve(server)
        link = f"{storage.url}/bucket/key?X-Amz-Signature=s%2Fx"
        server.on("GET", HEAVY, Answer(302, b"", {"Location": link}))
        left = [200_000]
        storage.routes["GET", "/bucket/key"] = lambda asked: part_of(WEIGHTS, asked, left.pop() if left else None)
        client.pull("digits", out)
        whole(out)
        assert [asked.headers.get("range") for asked in storage.asked] == [None, "bytes=200000-"]
        assert all("authorization" not in asked.headers for asked in storage.asked)
        assert all("if-range" not in asked.headers for asked in storage.asked), "its ETags are others"
        assert {asked.query["X-Amz-Signature"][0] for asked in storage.asked} == {"s/x"}
    finally:
        storage.close()


# --- the command line -------------------------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def test_pull_says_what_it_pulled(server, out, capsys):
    serve(server)
    assert run("backbones", "pull", "digits@best", "--out", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"name": "digits", "version": 3, "commit": "c" * 40, "folder": str(out)}
    assert run("backbones", "pull", "digits:3", "--out", str(out)) == 1
    assert "--force" in capsys.readouterr().err
    assert run("backbones", "pull", "digits:3", "--format", "timm", "--out", str(out), "--force") == 0
    assert (out / "config.json").read_bytes() == FILES["timm/config.json"]


def test_a_pull_that_is_broken_off_says_how_to_go_on(server, out, capsys, monkeypatch):
    serve(server)
    monkeypatch.setattr(download, "fetch", _raises(ConnectionFailed("it does not answer")))
    assert run("backbones", "pull", "digits", "--out", str(out)) == 1
    assert "the same command resumes it" in capsys.readouterr().err
    monkeypatch.setattr(download, "fetch", _raises(OSError(28, "No space left on device", "x.part")))
    assert run("backbones", "pull", "digits", "--out", str(out)) == 1
    assert "x.part: No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(download, "fetch", _raises(KeyboardInterrupt()))
    assert run("backbones", "pull", "digits", "--out", str(out)) == 130
    assert "the same command resumes it" in capsys.readouterr().err


def _raises(error: BaseException) -> Any:
    def fetch(*_: object) -> None:
        raise error

    return fetch


SUMMARY = {"name": "digits", "version": 3, "created_at": DATE, "job_id": "job-2", "trained_by": "job-1",
           "checkpoint_step": 480, "formats": ["timm"], "aliases": ["champion"],
           "metrics": {"eval/linear_top1": 0.75}, "tags": {}}  # fmt: skip
BACKBONE = {"name": "digits", "latest_version": 3, "main_version": 3, "versions": [3], "aliases": {"champion": 3},
            "owner": "alice", "labels": {"team": "vision"}, "metrics": {"eval/linear_top1": 0.75},
            "updated_at": DATE}  # fmt: skip


def test_backbones_are_listed_by_what_they_are_sorted_by(server, capsys):
    server.on("GET", "/v1/backbones", Answer(200, {"items": [BACKBONE], "next_cursor": None}))
    assert run("backbones", "list", "--sort=-eval/linear_top1", "--format", "timm", "--method", "rc_mae") == 0
    head, row = capsys.readouterr().out.splitlines()[:2]
    assert "EVAL/LINEAR_TOP1" in head
    assert row.split()[:8] == ["digits", "3", "3", "1", "champion:3", "alice", "team:vision", "0.75"]
    assert server.asked[0].query == {
        "sort": ["-eval/linear_top1"], "format": ["timm"], "method": ["rc_mae"], "limit": ["100"],
    }  # fmt: skip


def test_versions_that_somebody_deleted_in_mlflow_are_shown_as_gone(server, out, capsys):
    backbone = BACKBONE | {"versions": [2], "gone": [3], "main_version": 3, "latest_version": 2}
    server.on("GET", "/v1/backbones", Answer(200, {"items": [backbone], "next_cursor": None}))
    server.on("GET", "/v1/backbones/digits", Answer(200, backbone | {"details": [SUMMARY | {"state": "gone"}]}))
    server.on("GET", BASE, problem(410, "version_gone", "digits:3 was deleted in MLflow, so it cannot be pulled"))
    assert run("backbones", "list") == 0
    assert "3 gone" in capsys.readouterr().out
    assert run("backbones", "show", "digits") == 0
    assert "3 gone" in capsys.readouterr().out
    assert run("backbones", "pull", "digits:3", "--out", str(out)) == 1
    assert "digits:3 was deleted in MLflow" in capsys.readouterr().err
    assert not out.exists()


def test_show_is_of_the_backbone_or_of_one_version(server, capsys):
    serve(server, trained_by="job-0")
    server.on("GET", "/v1/backbones/digits", Answer(200, BACKBONE | {"details": [SUMMARY]}))
    assert run("backbones", "show", "digits") == 0
    told = capsys.readouterr().out
    assert "digits:3" in told
    assert "480" in told
    assert "job-1" in told
    assert run("backbones", "show", "digits:3") == 0
    told = capsys.readouterr().out
    assert "hf/model.safetensors" in told
    assert "job-0" in told


def test_an_alias_is_set_and_removed(server, capsys):
    for method in ("PUT", "DELETE"):
        server.on(method, "/v1/backbones/digits/aliases/best", Answer(200, BACKBONE | {"details": [SUMMARY]}))
    assert run("backbones", "alias", "digits:3", "best", "--json") == 0
    assert json.loads(capsys.readouterr().out)["aliases"] == {"champion": 3}
    assert run("backbones", "alias", "digits", "best", "--remove") == 0
    assert [(asked.method, asked.body) for asked in server.asked] == [("PUT", {"version": 3}), ("DELETE", None)]
    assert run("backbones", "alias", "digits:3", "best", "--remove") == 2


def going(*aliases: str) -> Answer:
    return Answer(200, {"name": "digits", "version": 3, "job_id": "job-1", "artifact_uri": "s3://a/b", "files": 9,
                        "bytes": 2048, "aliases": list(aliases),
                        "kept": f"digits:3 has the alias digits@{aliases[0]}" if aliases else ""})  # fmt: skip


def test_a_version_is_deleted_once_what_goes_was_shown(server, capsys, monkeypatch):
    server.on("DELETE", BASE, going())
    assert run("backbones", "delete", "digits:3", "--preview") == 0
    assert "9, 2.0 KiB" in capsys.readouterr().out
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert run("backbones", "delete", "digits:3") == 1
    assert "nothing is deleted" in capsys.readouterr().err
    assert all(asked.query == {"preview": ["true"]} for asked in server.asked)
    assert run("backbones", "delete", "digits:3", "--yes") == 0
    assert server.asked[-1].query == {}
    assert "deleted digits:3" in capsys.readouterr().out


def test_a_version_with_an_alias_is_not_even_asked_to_be_deleted(server, capsys):
    server.on("DELETE", BASE, going("champion"))
    assert run("backbones", "delete", "digits:3", "--yes") == 1
    assert "nothing is deleted: digits:3 has the alias digits@champion" in capsys.readouterr().err
    assert [asked.query for asked in server.asked] == [{"preview": ["true"]}]


def test_publish_submits_a_job(server, capsys):
    server.on("POST", "/v1/jobs", Answer(201, job(id="job-9")))
    assert run("backbones", "publish", "job-1", "--as", "digits") == 0
    assert "rcmae jobs wait job-9" in capsys.readouterr().out
    arguments = ("--checkpoint", "a1/00000100", "--network", "student", "--format", "timm", "--format", "hf")
    assert run("backbones", "publish", "job-1", "--as", "digits", *arguments) == 0
    assert [asked.body for asked in server.asked] == [
        {"kind": "publish", "job": "job-1", "register_as": "digits"},
        {"kind": "publish", "job": "job-1", "register_as": "digits", "checkpoint": "checkpoints/a1/00000100",
         "export": {"network": "student", "formats": ["timm", "hf"]}},
    ]  # fmt: skip


def test_convert_needs_no_server_and_says_what_it_cannot_read(server, out, tmp_path, capsys):
    folder = tmp_path / "pulled"
    folder.mkdir()
    for reader in ("detectron2", "mmpretrain"):
        assert run("backbones", "convert", str(folder), "--to", reader, "--out", str(out)) == 1
        assert str(folder) in capsys.readouterr().err
    assert run("backbones", "convert", str(folder), "--to", "caffe", "--out", str(out)) == 2
    assert not out.exists()
    assert server.asked == []


def test_a_file_system_without_locks_is_told(server, client, out, monkeypatch):
    serve(server)

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        client.pull("digits", out)
    assert not out.exists()


def test_a_pulled_folder_is_no_ones_secret(server, client, out):
    """Others of the machine may read it, as anything that its owner makes."""
    serve(server)
    mask = os.umask(0o022)
    try:
        client.pull("digits", out)
    finally:
        os.umask(mask)
    assert (out.stat().st_mode & 0o777, (out / "config.json").stat().st_mode & 0o777) == (0o755, 0o644)
