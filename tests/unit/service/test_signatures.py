"""Signatures over the checksums of versions: who makes them, where they are served, and what a pull makes of them."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backbone_files import FILES, Registry, sha256
from command_line import rcmae
from conftest import token_of
from fastapi.testclient import TestClient
from pydantic import ValidationError
from service_fakes import problem
from service_world import World

from service import signing_key
from service.adapters.storage import Artifacts, StorageRefused
from service.backbones.signature_schemas import SIGNATURE_FILE
from service.client.errors import ClientError, DownloadError
from service.client.sdk import Client
from service.client.signatures import SIGNED_SUMS, KnownKeys, SignatureError
from service.jobs.work import Work
from service.settings import Settings
from trainer.protocol.names import BACKBONE_SUMS as SUMS

BASE = "/v1/backbones/digits/versions"


def write_key(path: Path) -> Path:
    path.write_text(signing_key.to_pem(signing_key.new_key()))
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_key(tmp_path / "signing-key")


@pytest.fixture
def settings(settings: Settings, key_file: Path) -> Settings:
    return settings.model_copy(update={"signing_key_file": key_file})


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


@pytest.fixture
def sign(world: World) -> Callable[[], None]:
    """One pass of the controller's worker, whatever pause it would make."""

    def work() -> None:
        world._later((Work.SIGN_VERSIONS,))
        world.reconciler.removals.run_all((Work.SIGN_VERSIONS,))

    return work


def rotate(world: World, path: Path) -> None:
    world.app_state.settings.signing_key_file = write_key(path)


def openssl(*arguments: object, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=True).stdout


def openssl_takes(sums: bytes, signature: bytes, public_key: str, folder: Path) -> bool:
    for name, data in (("sums", sums), ("sig", signature), ("key.pem", public_key.encode())):
        (folder / name).write_bytes(data)
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "key.pem",
        "-rawin",
        "-in",
        "sums",
        "-sigfile",
        "sig",
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


# --- the key ----------------------------------------------------------------------------------------------------------


def test_openssl_reads_our_keys_and_we_read_its(tmp_path):
    ours = write_key(tmp_path / "ours")
    assert openssl("pkey", "-in", ours, "-noout", "-text").startswith(b"ED25519 Private-Key:")
    theirs = tmp_path / "theirs"
    openssl("genpkey", "-algorithm", "ed25519", "-out", theirs)
    seed = signing_key.read(theirs)
    assert seed == openssl("pkey", "-in", theirs, "-outform", "DER")[-32:]


@pytest.mark.parametrize(
    "text", [None, "", "nothing", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "rsa"]
)
def test_a_service_does_not_start_with_a_file_that_holds_no_such_key(tmp_path, text):
    path = tmp_path / "key"
    if text == "rsa":
        openssl("genpkey", "-algorithm", "rsa", "-out", path)
    elif text is not None:
        path.write_text(text)
    said = "cannot be read" if text is None else f"{path} is no private Ed25519 key"
    with pytest.raises(ValidationError, match=said):
        Settings(database_url="sqlite:///x", artifact_root="/x", signing_key_file=path)


# --- signing ----------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_version_is_signed_when_it_is_recorded_and_openssl_takes_the_signature(
    world, served, registry, sign, tmp_path
):
    sign()  # the service has its key before there is a version
    (key,) = served.get("/v1/signing-keys").json()["items"]
    der = openssl("pkey", "-pubin", "-outform", "DER", data=key["public_key"].encode())
    assert key["id"] == sha256(der)[:16]
    registry.add()
    world.reconciler.removals.run_all((Work.SIGN_VERSIONS,))  # due at once, without the pause of the last pass
    sums = served.get(f"{BASE}/1/files/{SUMS}").content
    told = served.get(f"{BASE}/main/signature").json()
    assert (told["key_id"], told["algorithm"], told["intact"]) == (key["id"], "ed25519", True)
    assert (told["sums_sha256"], told["public_key"]) == (sha256(sums), key["public_key"])
    signature = base64.b64decode(told["signature"])
    assert openssl_takes(sums, signature, key["public_key"], tmp_path)
    assert not openssl_takes(sums + b"\n", signature, key["public_key"], tmp_path)
    sign()
    assert served.get(f"{BASE}/main/signature").json() == told, "it is signed once"


def test_the_signature_is_a_file_at_every_door_that_serves_the_checksums(served, registry, sign):
    registry.add()
    version = served.get(f"{BASE}/1").json()
    assert version["signature"] is None
    assert SIGNATURE_FILE not in {file["path"] for file in version["files"]}
    problem(served.get(f"{BASE}/1/files/{SIGNATURE_FILE}"), 404, "signature_not_found")
    problem(served.get(f"{BASE}/1/signature"), 404, "signature_not_found")
    unsigned = served.get(f"{BASE}/1/archive")
    sign()
    version = served.get(f"{BASE}/1").json()
    assert set(version["signature"]) == {"key_id", "signed_at", "intact"}
    (file,) = (file for file in version["files"] if file["path"] == SIGNATURE_FILE)
    found = served.get(file["url"])
    assert (len(found.content), sha256(found.content), found.headers["ETag"]) == (
        64,
        file["sha256"],
        f'"{file["sha256"]}"',
    )
    assert served.head(file["url"]).headers["Content-Length"] == "64"
    assert served.get(file["url"], headers={"Range": "bytes=60-"}).content == found.content[60:]
    for query in ("", "?format=hf"):
        answer = served.get(f"{BASE}/1/archive{query}")
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            assert tar.extractfile(f"digits-v1/{SIGNATURE_FILE}").read() == found.content
        assert len(answer.content) == int(answer.headers["Content-Length"])
    assert unsigned.headers["ETag"] != served.head(f"{BASE}/1/archive").headers["ETag"]
    assert not (registry.folder("digits", 1) / SIGNATURE_FILE).exists(), "what is stored never changes"


def test_a_file_of_the_version_never_takes_the_signatures_place(served, registry, sign):
    registry.add(files=FILES | {SIGNATURE_FILE: b"forged"})
    problem(served.get(f"{BASE}/1/files/{SIGNATURE_FILE}"), 404, "signature_not_found")
    sign()
    assert len(served.get(f"{BASE}/1/files/{SIGNATURE_FILE}").content) == 64
    with tarfile.open(fileobj=io.BytesIO(served.get(f"{BASE}/1/archive").content)) as tar:
        assert [name for name in tar.getnames() if name.endswith(".sig")] == [f"digits-v1/{SIGNATURE_FILE}"]


@pytest.mark.both_databases
def test_after_a_change_of_keys_old_signatures_stay_and_both_keys_are_listed(world, served, registry, sign, tmp_path):
    registry.add()
    sign()
    old = served.get(f"{BASE}/1/signature").json()
    rotate(world, tmp_path / "new")
    registry.add(number=2)
    sign()
    new = served.get(f"{BASE}/2/signature").json()
    assert served.get(f"{BASE}/1/signature").json() == old
    assert [key["id"] for key in served.get("/v1/signing-keys").json()["items"]] == [new["key_id"], old["key_id"]]
    assert openssl_takes(
        served.get(f"{BASE}/1/files/{SUMS}").content, base64.b64decode(old["signature"]), old["public_key"], tmp_path
    )


def test_without_a_key_nothing_is_signed_and_versions_from_before_it_are_signed_later(
    world, served, registry, sign, key_file
):
    world.app_state.settings.signing_key_file = None
    registry.add()
    sign()
    assert served.get("/v1/signing-keys").json()["items"] == []
    assert served.get(f"{BASE}/1").json()["signature"] is None
    world.app_state.settings.signing_key_file = key_file
    sign()
    version = served.get(f"{BASE}/1").json()
    assert version["signature"]["signed_at"] > version["created_at"]


def test_a_version_that_cannot_be_signed_holds_up_no_other(served, registry, sign, monkeypatch):
    for number in range(1, 6):
        registry.add(number=number)
    (registry.folder("digits", 1) / SUMS).unlink()
    read = Artifacts.read

    def refuses(self: Artifacts, folder: str, name: str) -> bytes | None:
        if "digits-2" in folder:
            raise StorageRefused("not this one")
        return read(self, folder, name)

    monkeypatch.setattr(Artifacts, "read", refuses)
    monkeypatch.setattr("service.controller.passes.BATCH", 2)
    monkeypatch.setattr("service.controller.signatures.LARGEST_SUMS", 2000)
    (registry.folder("digits", 3) / SUMS).write_text("x" * 2001)
    for _ in range(3):
        sign()
    signed = [served.get(f"{BASE}/{number}/signature").status_code == 200 for number in range(1, 6)]
    assert signed == [False, False, False, True, True]


def test_a_number_that_mlflow_used_again_is_signed_anew(served, registry, mlflow, sign):
    registry.add()
    sign()
    old = served.get(f"{BASE}/1/signature").json()
    mlflow.registered.clear()
    registry.add(files=FILES | {"spec.json": b"another"})
    problem(served.get(f"{BASE}/1/signature"), 404, "signature_not_found")
    sign()
    assert served.get(f"{BASE}/1/signature").json()["sums_sha256"] != old["sums_sha256"]


def test_changed_checksums_are_told_and_the_page_says_so(served, routes, registry, sign):
    registry.add()
    page = TestClient(routes, follow_redirects=False)
    assert page.post("/login", data={"token": token_of("alice")}).status_code == 303
    assert "Not signed" in page.get("/backbones/digits").text
    sign()
    key = served.get(f"{BASE}/1").json()["signature"]["key_id"]
    shown = page.get("/backbones/digits").text
    assert key in shown
    assert "rcmae backbones pull digits:1 --format all --verify --out digits" in shown
    folder = registry.folder("digits", 1)
    (folder / SUMS).write_text((folder / SUMS).read_text().replace("timm", "mitt"))
    assert served.get(f"{BASE}/1").json()["signature"]["intact"] is False
    shown = page.get("/backbones/digits").text
    assert f"not those that the key {key} signed" in shown
    assert "--verify" not in shown


# --- pulling ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, token_of("alice"), patience_s=0.3) as made:
        yield made


@pytest.fixture
def signed(registry: Registry, sign: Callable[[], None]) -> Path:
    """The folder of a signed version."""
    registry.add()
    sign()
    return registry.folder("digits", 1)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file, with its checksum: whoever can write into the storage can do both."""
    old = sha256((folder / name).read_bytes())
    (folder / name).write_bytes(data)
    (folder / SUMS).write_text((folder / SUMS).read_text().replace(old, sha256(data)))


def nothing_is_there(out: Path) -> bool:
    return not out.exists() and not list(out.parent.glob(f".{out.name}*"))


@pytest.mark.parametrize("form", ["hf", "all"])
def test_a_signed_version_is_pulled_and_verified_again_without_a_service(signed, address, tmp_path, capsys, form):
    out = tmp_path / "pulled"
    pull = ("backbones", "pull", "digits", "--format", form, "--verify", "--out")
    status, told, said = rcmae(capsys, *pull, out)
    assert status == 0, said
    (key,) = KnownKeys().of(address)
    assert f"first key of {address}: {key.id}" in said
    assert f"digits:1 is in {out}, signed by the key {key.id}" in told
    sums = (out / (SUMS if form == "all" else SIGNED_SUMS)).read_bytes()
    assert sums == (signed / SUMS).read_bytes()
    assert openssl_takes(sums, (out / SIGNATURE_FILE).read_bytes(), key.pem, tmp_path)
    assert rcmae(capsys, "backbones", "verify", out)[:2] == (
        0, f"{out} is what the key {key.id} has signed, which is in {KnownKeys().file} ({address})\n",
    )  # fmt: skip
    assert "first key" not in rcmae(capsys, *pull, tmp_path / "again")[2]
    assert KnownKeys().file.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("form", ["hf", "all"])
def test_a_folder_that_was_changed_after_the_pull_does_not_verify(client, tmp_path, capsys, form):
    out = tmp_path / "pulled"
    client.pull("digits", out, form=form, verify=True)
    config = out / ("config.json" if form == "hf" else "hf/config.json")

    def refused(said: str) -> None:
        status, _, why = rcmae(capsys, "backbones", "verify", out)
        assert status != 0
        assert said in why

    def kept(path: Path) -> Callable[[], object]:
        data = path.read_bytes()
        return lambda: path.write_bytes(data)

    put_back = kept(config)
    config.write_bytes(b"{}")
    refused(f"{config} was changed")
    put_sums_back = kept(out / SUMS)
    (out / SUMS).write_text((out / SUMS).read_text().replace(sha256(FILES["hf/config.json"]), sha256(b"{}")))
    refused("were changed" if form == "hf" else "signature of")
    put_sums_back()
    config.unlink()
    refused(f"{config} is missing")
    put_back()
    (out / "pytorch_model.bin").write_bytes(b"pickle")
    refused("pytorch_model.bin is not of the version")
    (out / "pytorch_model.bin").unlink()
    put_signature_back = kept(out / SIGNATURE_FILE)
    for wrong in (bytes(64), b"short", b""):
        (out / SIGNATURE_FILE).write_bytes(wrong)
        refused("is wrong")
    (out / SIGNATURE_FILE).unlink()
    refused("pull it with --verify")
    put_signature_back()
    assert rcmae(capsys, "backbones", "verify", out)[0] == 0


@pytest.mark.parametrize("form", ["hf", "all"])
def test_nothing_is_kept_of_a_version_that_was_changed_after_it_was_signed(signed, client, tmp_path, form):
    out = tmp_path / "pulled"
    untouched = {name: (signed / name).read_bytes() for name in ("hf/config.json", SUMS)}
    (signed / "hf/config.json").write_bytes(FILES["hf/config.json"][::-1])
    with pytest.raises(DownloadError, match="sha256"):
        client.pull("digits", out, form=form, verify=True)
    assert nothing_is_there(out)
    (signed / "hf/config.json").write_bytes(untouched["hf/config.json"])
    rewrite(signed, "hf/config.json", b'{"auto_map": "evil"}')
    with pytest.raises(SignatureError, match=r"digits:1 is wrong: none of the trusted keys"):
        client.pull("digits", out, form=form, verify=True)
    assert nothing_is_there(out)
    client.pull("digits", out, form=form)  # who does not verify gets what the storage holds


@pytest.mark.usefixtures("signed")
def test_a_service_that_lists_other_files_than_the_signed_ones_is_found_out(client, tmp_path, monkeypatch):
    view = client.version("digits")

    def listing(change: Callable[[list], object]) -> None:
        changed = view.model_copy(deep=True)
        change(changed.files)
        monkeypatch.setattr(client, "version", lambda *_: changed)

    out = tmp_path / "pulled"
    for form in ("hf", "all"):
        listing(lambda files: files.remove(next(f for f in files if f.path == "hf/config.json")))
        with pytest.raises(SignatureError, match=r"hf/config.json is signed, and the service does not list it"):
            client.pull("digits", out, form=form, verify=True)
        listing(lambda files: files.append(files[0].model_copy(update={"path": "hf/pytorch_model.bin"})))
        with pytest.raises(SignatureError, match=r"hf/pytorch_model.bin is listed by the service, and not signed"):
            client.pull("digits", out, form=form, verify=True)
    listing(lambda files: setattr(next(f for f in files if f.path == "hf/config.json"), "sha256", "0" * 64))
    with pytest.raises(SignatureError, match=r"hf/config.json has the sha256 0000"):
        client.pull("digits", out, verify=True)
    assert nothing_is_there(out)


def test_a_version_that_is_not_signed_is_not_pulled_with_verify(registry, client, tmp_path, capsys):
    registry.add()
    out = tmp_path / "pulled"
    status, _, said = rcmae(capsys, "backbones", "pull", "digits", "--verify", "--out", out)
    assert status != 0
    assert "digits:1 is not signed" in said
    assert nothing_is_there(out)
    client.pull("digits", out, form="all")
    status, _, said = rcmae(capsys, "backbones", "verify", out)
    assert status != 0
    assert f"{out} has no {SIGNATURE_FILE}" in said


@pytest.mark.usefixtures("signed")
def test_a_key_that_changed_since_the_first_pull_is_an_error_that_names_both(
    world, registry, sign, address, client, tmp_path, capsys
):
    client.pull("digits", tmp_path / "first", verify=True)
    (old,) = KnownKeys().of(address)
    rotate(world, tmp_path / "new")
    registry.add(number=2)
    sign()
    new = client.signature("digits", 2).key_id
    out = tmp_path / "second"
    status, _, said = rcmae(capsys, "backbones", "pull", "digits:2", "--verify", "--out", out)
    assert status != 0
    assert f"digits:2 is signed by the key {new}, and this client trusts {old.id} of {address}" in said
    assert nothing_is_there(out)
    client.pull("digits", out, version=1, verify=True)  # what the old key signed is still trusted
    KnownKeys().remember(address, [])
    client.pull("digits", tmp_path / "third", version=2, verify=True)
    assert {key.id for key in KnownKeys().of(address)} == {old.id, new}


@pytest.mark.usefixtures("signed")
def test_keys_of_a_file_are_trusted_and_no_others(client, tmp_path, capsys):
    status, printed, _ = rcmae(capsys, "backbones", "keys")
    assert status == 0
    file = tmp_path / "keys.pem"
    file.write_text(printed)
    assert rcmae(capsys, "backbones", "pull", "digits", "--verify", "--key", file, "--out", tmp_path / "a")[0] == 0
    assert not KnownKeys().file.exists()
    assert rcmae(capsys, "backbones", "verify", tmp_path / "a", "--key", file)[0] == 0
    status, _, said = rcmae(capsys, "backbones", "verify", tmp_path / "a")
    assert (status != 0, "(none)" in said) == (True, True)
    other = tmp_path / "other.pem"
    other.write_bytes(openssl("pkey", "-in", write_key(tmp_path / "k"), "-pubout"))
    out = tmp_path / "b"
    status, _, said = rcmae(capsys, "backbones", "pull", "digits", "--verify", "--key", other, "--out", out)
    assert status != 0
    assert f"is signed by the key {client.signature('digits').key_id}, and {other} holds" in said
    assert nothing_is_there(out)
    assert rcmae(capsys, "backbones", "verify", tmp_path / "a", "--key", other)[0] != 0
    file.write_text(other.read_text() + printed)  # a file may hold several
    assert rcmae(capsys, "backbones", "pull", "digits", "--verify", "--key", file, "--out", out)[0] == 0
    for text, why in (("nothing", "holds no public key"), (other.read_text().replace("MCow", "AAAA"), "in PEM")):
        file.write_text(text)
        status, _, said = rcmae(capsys, "backbones", "verify", tmp_path / "a", "--key", file)
        assert (status != 0, why in said) == (True, True), said
    status, _, said = rcmae(capsys, "backbones", "pull", "digits", "--key", other, "--out", tmp_path / "c")
    assert (status != 0, "only --verify uses a key" in said) == (True, True)


@pytest.mark.usefixtures("signed")
def test_without_the_package_the_error_says_what_to_install(client, tmp_path, monkeypatch):
    for name in ("cryptography.exceptions", "cryptography.hazmat.primitives.serialization"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ClientError, match=r"pip install 'rcmae\[verify\]'"):
        client.pull("digits", tmp_path / "pulled", verify=True)
    client.pull("digits", tmp_path / "pulled")


@pytest.mark.usefixtures("signed")
def test_the_json_of_the_commands_names_the_key(address, client, tmp_path, capsys):
    key = client.signature("digits").key_id
    out = tmp_path / "pulled"
    _, told, _ = rcmae(capsys, "backbones", "pull", "digits", "--verify", "--json", "--out", out)
    assert json.loads(told)["key"] == key
    _, told, _ = rcmae(capsys, "backbones", "verify", out, "--json")
    assert json.loads(told) == {"folder": str(out), "key": key, "trusted_by": f"{KnownKeys().file} ({address})"}
    _, told, _ = rcmae(capsys, "backbones", "keys", "--json")
    assert [each["id"] for each in json.loads(told)] == [key]
    assert f"key {key}" in rcmae(capsys, "backbones", "show", "digits:1")[1]


@pytest.mark.usefixtures("signed")
def test_a_redirect_into_the_storage_serves_the_checksums_and_the_service_the_signature(served, monkeypatch):
    monkeypatch.setattr(Artifacts, "link", lambda *_: "http://storage.test/x")
    served.app.state.app_state.settings.presigned_downloads = True
    assert served.get(f"{BASE}/1/files/{SUMS}", follow_redirects=False).status_code == 302
    assert served.get(f"{BASE}/1/files/{SIGNATURE_FILE}", follow_redirects=False).status_code == 200
