"""A store in S3: a real server behind a proxy that fails, wrong settings, threads and processes."""

import hashlib
import multiprocessing
import pickle
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from trainer import storage
from trainer.errors import StorageError
from trainer.storage import S3, Store, open_filesystem, storage_errors

CONTENT = bytes(range(256)) * 800


@pytest.fixture
def bucket(s3) -> str:
    return s3.bucket("storage")


@pytest.fixture
def store(s3, s3_proxy, use_s3, bucket) -> Store:
    """A folder in S3, seen through the proxy."""
    use_s3(s3.environment(s3_proxy.endpoint))
    return Store(f"{bucket}/{uuid.uuid4().hex}")


def exercise(store: Store, tmp_path) -> None:
    """Everything a store does, and that it did it."""
    (tmp_path / "up/deep").mkdir(parents=True)
    (tmp_path / "up/weights").write_bytes(CONTENT)
    (tmp_path / "up/deep/x").write_bytes(b"x")
    for number in range(4):
        store.write(f"written/{number}", CONTENT[number:])
    store.upload(tmp_path / "up", "up")
    assert store.names("") == ["up", "written"]
    assert store.names("up") == ["deep", "weights"]
    assert [store.read(f"written/{number}") for number in range(4)] == [CONTENT[number:] for number in range(4)]
    assert store.exists("up/deep/x")
    assert not store.exists("up/other")
    with store.local_copy("written") as directory:
        assert [file.read_bytes() for file in sorted(directory.iterdir())] == [CONTENT[n:] for n in range(4)]
    for name in ("written/0", "up"):
        store.delete(name)
    assert store.names("written") == ["1", "2", "3"]
    assert not store.exists("up/weights")


def test_a_store_in_s3(store, tmp_path, s3):
    exercise(store, tmp_path)
    left = s3.filesystem().find(store.root)
    assert [path.removeprefix(store.root) for path in left] == ["/written/1", "/written/2", "/written/3"]


@pytest.mark.parametrize(
    "fault",
    [{"fail_every": 2, "status": 503}, {"fail_every": 3, "status": 500}, {"cut_every": 3}, {"delay_s": 0.05}],
    ids=["503", "500", "cut", "slow"],
)
def test_faults_in_passing_are_not_noticed(store, s3_proxy, tmp_path, fault):
    for name, value in fault.items():
        setattr(s3_proxy.faults, name, value)
    exercise(store, tmp_path)
    assert s3_proxy.faults.done >= (0 if "delay_s" in fault else 5)
    assert s3_proxy.faults.seen > 20


def test_a_large_upload_in_parts_survives_faults(store, s3_proxy, tmp_path, s3):
    (tmp_path / "up").mkdir()
    content = CONTENT * 520  # 106 MB: s3fs sends what is above 100 MB in parts
    (tmp_path / "up/large").write_bytes(content)
    s3_proxy.faults.cut_every = 3
    store.upload(tmp_path / "up", "up")
    assert s3_proxy.faults.done
    assert s3.filesystem().cat_file(store.path("up/large")) == content


def test_a_cut_file_goes_on_where_it_was(store, s3_proxy):
    """More bytes than the cut answers hold would never arrive if each try began anew."""
    content = CONTENT * 100
    store.write("d/large", content)
    s3_proxy.faults.cut_every = 1
    tried = s3_proxy.faults.seen

    def mend() -> None:
        while s3_proxy.faults.seen < tried + 3:
            time.sleep(0.01)
        s3_proxy.faults.cut_every = 0

    mender = threading.Thread(target=mend)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "names", lambda *_: ["large"])
        mender.start()
        with store.local_copy("d") as directory:
            mender.join()
            assert (directory / "large").read_bytes() == content
    assert s3_proxy.faults.done >= 2


@pytest.mark.slow
def test_a_server_gone_for_half_a_minute_is_waited_for(store, s3_proxy):
    store.write("x", b"before")
    with s3_proxy.away(30), ThreadPoolExecutor(40) as pool:
        # Many at once: none of them may use up the others' tries.
        read = [pool.submit(store.read, "x") for _ in range(30)]
        written = [pool.submit(store.write, f"y/{n}", b"during") for n in range(10)]
        assert {future.result() for future in read} == {b"before"}
        assert [future.result() for future in written] == [None] * 10
    assert len(store.names("y")) == 10


def test_a_server_gone_for_ever_is_an_error_in_time(store, s3_proxy, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    store.write("x", b"before")
    s3_proxy.close()
    for fails in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        lambda: store.names(""),
        lambda: store.exists("x"),
    ):
        with pytest.raises(StorageError, match=rf"{store.uri}/x?: cannot be reached: .*AWS_ENDPOINT_URL"):
            fails()


def test_a_server_that_only_fails_is_an_error_in_time(store, s3_proxy, monkeypatch):
    """The number of requests is what tells whether retries of several layers multiply."""
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 2.0)
    s3_proxy.faults.fail_every = 1
    with pytest.raises(StorageError, match=f"{store.uri}/x: cannot be reached: .*503 SlowDown"):
        store.write("x", b"")
    assert 3 <= s3_proxy.faults.seen <= 8
    s3_proxy.faults.fail_every, s3_proxy.faults.cut_every = 0, 1
    store.fs.retries = 3
    with pytest.raises(StorageError, match=f"{store.uri}/x: "):
        store.write("x", b"")
    assert s3_proxy.faults.seen <= 16


def test_bodies_cut_for_ever_are_an_error(store, s3_proxy):
    store.write("x", CONTENT)
    s3_proxy.faults.cut_every = 1
    with pytest.raises(StorageError, match=f"{store.uri}/x: the connection was lost repeatedly"):
        store.read("x")


# --- wrong settings --------------------------------------------------------------------------------------------------


def every_operation(store: Store):
    return [
        lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.exists("x"), lambda: store.names("x"),
        lambda: store.delete("x"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "somebody-else", "credentials"),
        ("AWS_SECRET_ACCESS_KEY", "a-wrong-secret", "credentials"),
    ],
)
def test_wrong_credentials_are_told_and_not_shown(s3, use_s3, bucket, variable, value, said):
    use_s3(s3.environment(**{variable: value}))
    store = Store(f"{bucket}/run")
    for fails in every_operation(store):
        with pytest.raises(StorageError, match=f"s3://storage/run/x: .*{said}.*AWS_ACCESS_KEY_ID") as error:
            fails()
        assert value not in str(error.value)


def test_no_credentials_are_told(s3, use_s3, bucket, monkeypatch):
    use_s3(s3.environment())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="s3://storage/run/x: the credentials are missing or incomplete: set AWS"):
        Store(f"{bucket}/run").read("x")


def test_a_missing_bucket_is_told_and_never_made(s3, use_s3, tmp_path):
    use_s3(s3.environment())
    store = Store("s3://nobody-made-this/run")
    (tmp_path / "f").write_bytes(b"1")
    for fails in (*every_operation(store), lambda: store.upload(tmp_path, "")):
        with pytest.raises(StorageError, match=r"s3://nobody-made-this/run/.: there is no such bucket"):
            fails()
    # Ray Train stores through pyarrow, which makes folders first.
    arrow = PyFileSystem(FSSpecHandler(store.fs))
    arrow.create_dir(f"{store.root}/a9", recursive=True)
    with pytest.raises(OSError, match="bucket does not exist"), arrow.open_output_stream(f"{store.root}/f") as stream:
        stream.write(b"1")
    assert not s3.filesystem().exists("nobody-made-this")


def test_a_folder_s_mark_is_no_file(store, s3):
    """Web consoles make an object of no bytes for a folder."""
    s3.filesystem().call_s3("put_object", Bucket="storage", Key=f"{store.root.partition('/')[2]}/d/", Body=b"")
    store.write("d/x", b"1")
    assert store.names("d") == ["x"]
    with store.local_copy("d") as directory:
        assert [file.name for file in directory.iterdir()] == ["x"]


def test_a_missing_file_is_told(store):
    with pytest.raises(StorageError, match=f"{store.uri}/x: there is no such file"):
        store.read("x")


def test_a_profile_has_credentials_and_endpoint(s3, use_s3, bucket, tmp_path, monkeypatch):
    settings = s3.environment()
    (tmp_path / "config").write_text(
        f"[profile lab]\nendpoint_url = {settings['AWS_ENDPOINT_URL']}\nregion = us-east-1\n"
    )
    (tmp_path / "keys").write_text(
        f"[lab]\naws_access_key_id = {settings['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {settings['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in settings:
        monkeypatch.delenv(name, raising=False)
    use_s3(
        {
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"),
            "AWS_PROFILE": "lab",
        }
    )
    store = Store(f"{bucket}/profile")
    store.write("x", b"1")
    assert store.read("x") == b"1"
    use_s3({"AWS_PROFILE": "other"})
    with pytest.raises(StorageError, match=r"s3://storage/profile: .*\(other\) could not be found: check AWS_PROFILE"):
        Store(f"{bucket}/profile")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:hidden@bucket/run", "a URI must not hold credentials"),
        ("gs://bucket/run", "neither a local path nor an s3:// URI"),
        ("http://user:hidden@host/run", "neither a local path nor an s3:// URI"),
    ],
)
def test_uris_that_are_refused(uri, said):
    with pytest.raises(StorageError, match=said) as error:
        open_filesystem(uri)
    assert "hidden" not in str(error.value)


def test_an_endpoint_that_is_none_is_told(s3, use_s3):
    use_s3(s3.environment("127.0.0.1:9000"))
    with pytest.raises(StorageError, match=r"s3://b/run: .*127\.0\.0\.1:9000: check AWS_ENDPOINT_URL"):
        Store("s3://b/run")


def test_an_endpoint_that_speaks_no_s3_is_told(s3, use_s3, stand_in_endpoint, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 1.0)
    use_s3(s3.environment(stand_in_endpoint))
    with pytest.raises(StorageError, match=r"s3://b/run/x: .*Check AWS_ENDPOINT_URL"):
        Store("s3://b/run").names("x")


@pytest.fixture
def stand_in_endpoint():
    """A web server that is no S3: it answers every request with a page."""
    from http.server import BaseHTTPRequestHandler, HTTPServer  # noqa: PLC0415

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_told_leaves_other_errors_alone():
    with pytest.raises(ValueError, match="no storage"), storage_errors("s3://b/x"):
        raise ValueError("no storage")
    with pytest.raises(StorageError, match=r"^s3://b/x: \[Errno 28\] No space left"), storage_errors("s3://b/x"):
        raise OSError(28, "No space left on device")


# --- threads and processes -------------------------------------------------------------------------------------------


def test_threads_share_one(store):
    assert open_filesystem(store.uri)[0] is store.fs
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.write(f"t/{n}", CONTENT[: 100 * n]), range(40)))
        read = list(pool.map(lambda n: open_filesystem(store.uri)[0].cat_file(store.path(f"t/{n}")), range(40)))
    assert read == [CONTENT[: 100 * n] for n in range(40)]


def digest_in_another_process(fs: S3, path: str) -> str:
    return hashlib.sha256(fs.cat_file(path)).hexdigest()


def test_another_process_opens_its_own(store):
    store.write("x", CONTENT)
    pickled = pickle.dumps(store.fs)
    assert b"tests-secret-key" not in pickled
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(digest_in_another_process, (store.fs, store.path("x")))
    assert found == hashlib.sha256(CONTENT).hexdigest()
