"""Downloading what a job leaves for people: each file whole or not at all, going on wherever it was broken off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import rcmae
from listed_version import part_of, sha256
from scripted_server import Answer, Asked, ScriptedServer, problem

from service.client.errors import ApiError, ClientError, DownloadError
from service.client.sdk import Client

BASE = "/v1/jobs/job-1/files"
PART = bytes(range(256)) * 1500
FILES = {
    "embeddings/part-00000.parquet": PART,
    "embeddings/part-00001.parquet": PART[::-1],
    "embeddings/schema.json": b"{}",
    "images/empty.png": b"",
}


def serve(
    server: ScriptedServer, contents: dict[str, bytes] = FILES, modified: str = "2026-01-02T03:04:05.25Z"
) -> None:
    """A job with these files."""

    def listed(asked: Asked) -> Answer:
        items = [
            {
                "path": path,
                "bytes": len(data),
                "modified_at": modified,
                "etag": f'"{sha256(data)}"',
                "url": f"{BASE}/{path}",
            }
            for path, data in contents.items()
            if path.startswith(asked.query.get("prefix", [""])[0])
        ]
        return Answer(200, {"items": items, "next_cursor": None})

    server.routes["GET", BASE] = listed
    for path, data in contents.items():
        server.routes["GET", f"{BASE}/{path}"] = lambda asked, data=data: part_of(data, asked)


def lies(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def requested(server: ScriptedServer) -> list[tuple[str, str | None]]:
    """Files that were asked for, with the ranges."""
    found = [(asked.path.removeprefix(f"{BASE}/"), asked.headers.get("range")) for asked in server.asked]
    return sorted(each for each in found if each[0] != BASE)


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "secret", patience_s=0.3) as made:
        yield made


def test_all_files_lie_as_the_job_has_them_and_are_not_asked_for_again(server, client, tmp_path):
    serve(server)
    seen: list[tuple[int, int]] = []
    assert [
        each.path for each in client.download_files("job-1", tmp_path, progress=lambda *told: seen.append(told))
    ] == list(FILES)
    assert lies(tmp_path) == FILES
    total = sum(map(len, FILES.values()))
    assert (seen[-1], {each[1] for each in seen}) == ((total, total), {total})
    before = len(requested(server))
    client.download_files("job-1", tmp_path)
    assert len(requested(server)) == before


def test_a_running_jobs_new_files_are_added(server, client, tmp_path):
    serve(server, {name: FILES[name] for name in list(FILES)[:1]})
    client.download_files("job-1", tmp_path, prefix="embeddings/")
    server.asked.clear()
    serve(server)
    client.download_files("job-1", tmp_path, prefix="embeddings/")
    assert lies(tmp_path).keys() == {name for name in FILES if name.startswith("embeddings/")}
    assert [name for name, _ in requested(server)] == ["embeddings/part-00001.parquet", "embeddings/schema.json"]


def test_a_download_that_was_broken_off_goes_on(server, client, tmp_path):
    serve(server)
    name = "embeddings/part-00000.parquet"
    server.routes["GET", f"{BASE}/{name}"] = lambda asked: (
        problem(503, "unavailable", "away") if "range" in asked.headers else part_of(PART, asked, 200_000)
    )
    with pytest.raises(ApiError, match="away"):
        client.download_files("job-1", tmp_path)
    assert not (tmp_path / name).exists()
    (part,) = (tmp_path / "embeddings").glob("*.part")
    have = part.stat().st_size
    assert 0 < have <= 200_000
    serve(server)
    server.asked.clear()
    client.download_files("job-1", tmp_path)
    assert lies(tmp_path) == FILES
    assert (name, f"bytes={have}-") in requested(server)


def test_a_file_that_the_job_has_written_again_is_replaced_only_by_force(server, client, tmp_path):
    serve(server)
    client.download_files("job-1", tmp_path)
    serve(server, FILES | {"embeddings/schema.json": b"[]"}, "2026-01-02T03:04:06Z")
    with pytest.raises(FileExistsError, match="--force"):
        client.download_files("job-1", tmp_path)
    assert lies(tmp_path) == FILES
    client.download_files("job-1", tmp_path, force=True)
    assert lies(tmp_path) == FILES | {"embeddings/schema.json": b"[]"}


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "embeddings/a\\b", "embeddings//x", "embeddings/nul.json"]
)
def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_brought(server, client, tmp_path, path):
    serve(server, {"embeddings/schema.json": b"{}", path: b"evil"})
    with pytest.raises(DownloadError, match="nothing is downloaded"):
        client.download_files("job-1", tmp_path / "to")
    assert requested(server) == []
    assert not (tmp_path / "to").exists()


def test_one_file_is_downloaded_by_its_path(server, client, tmp_path):
    serve(server)
    assert client.download("job-1", "embeddings/schema.json", tmp_path / "schema.json") == 2
    assert (tmp_path / "schema.json").read_bytes() == b"{}"
    with pytest.raises(ClientError, match="has left no file 'embeddings/part'"):
        client.download("job-1", "embeddings/part", tmp_path / "part")


def test_the_command_lists_and_downloads(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RCMAE_URL", server.url)
    monkeypatch.setenv("RCMAE_TOKEN", "secret")
    serve(server)
    status, shown, _ = rcmae(capsys, "jobs", "files", "job-1", "--prefix", "embeddings/")
    assert status == 0
    assert all(name in shown for name in FILES if name.startswith("embeddings/"))
    assert "images/empty.png" not in shown
    status, _, told = rcmae(capsys, "jobs", "files", "job-1", "--download", tmp_path / "to")
    assert (status, lies(tmp_path / "to")) == (0, FILES)
    assert "4 files" in told
    status, _, told = rcmae(capsys, "jobs", "files", "job-1", "--force")
    assert (status, "--download DIR" in told) == (2, True)
