"""The files that a job leaves for people: which they are, and how they are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_fakes import add_job, problem

PART = bytes(range(256)) * 5000
LEFT = {
    "embeddings/part-00000.parquet": PART,
    "embeddings/schema.json": b"{}",
    "evaluation.json": b'{"scores": []}',
    "evaluation/pictures/con fusion.png": b"\x89PNG",
    "images/reconstruction_00000003.png": b"\x89PNG3",
    "inspection.json": b"{}",
}
"""What people are shown, sorted by path."""
KEPT = ("checkpoints/a1/00000003/student.safetensors", "attempts/1/outcome.json", "attempts/1/logs/driver.0001.jsonl")


@pytest.fixture
def job_id(database, root: Path) -> str:
    for name, data in {**LEFT, **dict.fromkeys((*KEPT, "secret.json"), b"secret")}.items():
        path = root / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "beside.json").write_text("secret")
    return add_job(database, "succeeded", artifact_uri=str(root / "run"))


@pytest.mark.both_databases
def test_what_a_job_leaves_for_people_is_listed_page_by_page(api, job_id):
    page = api.get(f"/v1/jobs/{job_id}/files").json()
    assert {file["path"]: file["bytes"] for file in page["items"]} == {path: len(data) for path, data in LEFT.items()}
    assert page["next_cursor"] is None
    paths, cursor = [], None
    while True:
        params = {"limit": 4, **({"cursor": cursor} if cursor else {})}
        page = api.get(f"/v1/jobs/{job_id}/files", params=params).json()
        paths += [file["path"] for file in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert paths == list(LEFT)


@pytest.mark.parametrize(
    ("prefix", "count"),
    [("embeddings/", 2), ("embeddings/part-", 1), ("eval", 2), ("evaluation/", 1), ("checkpoints/", 0), ("../", 0)],
)
def test_a_prefix_selects(api, job_id, prefix, count):
    items = api.get(f"/v1/jobs/{job_id}/files", params={"prefix": prefix}).json()["items"]
    assert [path for path in LEFT if path.startswith(prefix)] == [file["path"] for file in items]
    assert len(items) == count


def test_each_file_is_served_as_the_list_says(api, job_id):
    for file in api.get(f"/v1/jobs/{job_id}/files").json()["items"]:
        answer = api.get(file["url"])
        assert (answer.content, answer.headers["ETag"]) == (LEFT[file["path"]], file["etag"])
        assert api.head(file["url"]).headers["Content-Length"] == str(file["bytes"])
    picture = api.get(f"/v1/jobs/{job_id}/files/evaluation/pictures/con%20fusion.png")
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.headers["Content-Disposition"] == "attachment; filename*=UTF-8''con%20fusion.png"
    assert picture.headers["X-Content-Type-Options"] == "nosniff"


def test_a_download_goes_on_only_with_the_same_file(api, job_id, root):
    url = f"/v1/jobs/{job_id}/files/embeddings/part-00000.parquet"
    etag = api.head(url).headers["ETag"]
    rest = api.get(url, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, PART[1000:])
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 304
    other = root / "run" / "embeddings" / "new"
    other.write_bytes(PART[::-1])
    other.replace(root / "run" / "embeddings" / "part-00000.parquet")
    whole = api.get(url, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (whole.status_code, whole.content) == (200, PART[::-1])


def test_a_page_that_a_job_has_written_is_never_run_by_a_browser(api, job_id, root):
    for name in ("page.html", "picture.svg", "code.js"):
        (root / "run" / "evaluation" / name).write_text("<script>alert(1)</script>")
        answer = api.get(f"/v1/jobs/{job_id}/files/evaluation/{name}")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment")


@pytest.mark.parametrize(
    "path",
    [
        *KEPT, "secret.json", "../beside.json", "embeddings/..%2F..%2Fbeside.json", "embeddings/../secret.json",
        "embeddings/%2e%2e/secret.json", "%2Fetc%2Fpasswd", "embeddings", "embeddings/", "embeddings/none.parquet",
        "embeddings/a%00.png", "embeddings/link.json", "",
    ],
)  # fmt: skip
def test_nothing_else_of_the_storage_is_served(api, job_id, root, path):
    (root / "run" / "embeddings" / "link.json").symlink_to(root / "beside.json")
    answer = api.get(f"/v1/jobs/{job_id}/files/{path}")
    assert answer.status_code == 404, path
    assert "secret" not in answer.text.replace("secret.json", "")
    listed = api.get(f"/v1/jobs/{job_id}/files").json()["items"]
    assert "embeddings/link.json" not in [file["path"] for file in listed]


def test_a_job_that_has_not_begun_has_none(api, database):
    job_id = add_job(database)
    assert api.get(f"/v1/jobs/{job_id}/files").json() == {"items": [], "next_cursor": None}
    problem(api.get(f"/v1/jobs/{job_id}/files/evaluation.json"), 404, "file_not_found")
    problem(api.get("/v1/jobs/job-none/files"), 404, "job_not_found")
    problem(api.get(f"/v1/jobs/{job_id}/files", params={"cursor": "WzFd"}), 422, "parameter_invalid")
