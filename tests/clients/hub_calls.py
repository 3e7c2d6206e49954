"""Every call that reads models, with whatever version of the Hub's client runs this: a report of what each gave.

It runs in an environment of the client alone; `readers.report` starts it.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi, HfFileSystem, ModelCard, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub import get_hf_file_metadata as metadata_of

ARGUMENTS = json.loads(Path("arguments.json").read_text())
ENDPOINT, TOKEN, COMMITS = ARGUMENTS["endpoint"], ARGUMENTS["token"], ARGUMENTS["commits"]
REPO, FILE, WEIGHTS = "rcmae/digits", "config.json", "model.safetensors"
api = HfApi(endpoint=ENDPOINT, token=TOKEN)
files = HfFileSystem(endpoint=ENDPOINT, token=TOKEN)
calls = {}


def call(name, needs=""):
    """Registers a call; ``needs`` is the method of `HfApi` that older or newer clients lack."""

    def register(function):
        calls[name] = (needs, function)
        return function

    return register


def reported(function):
    try:
        return {"gave": function()}
    except Exception as error:  # noqa: BLE001 - the report has whatever it is
        causes, cause = [], error
        while cause is not None:
            causes.append(type(cause).__name__)
            cause = cause.__cause__ or cause.__context__
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"raised": kinds, "causes": causes, "text": str(error), "trace": traceback.format_exc()}


def command(*words):
    """Runs the client's command; its old name where the new one is not there yet."""
    folder = Path(sys.executable).parent
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [str(folder / words[0]), *words[1:]], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout


NEW, OLD = ((Path(sys.executable).parent / name).exists() for name in ("hf", "huggingface-cli"))


# --- the caller and models --------------------------------------------------------------------------------------------

call("whoami")(lambda: api.whoami()["name"])
call("auth_check", "auth_check")(lambda: api.auth_check(REPO))
call("model_info")(lambda: _info(api.model_info(REPO)))
call("model_info revision")(lambda: api.model_info(REPO, revision="v2").sha)
call("model_info files_metadata")(
    lambda: {each.rfilename: each.size for each in api.model_info(REPO, files_metadata=True).siblings}
)
call("model_info securityStatus")(lambda: api.model_info(REPO, securityStatus=True).id)
call("repo_exists", "repo_exists")(lambda: [api.repo_exists(REPO), api.repo_exists("rcmae/none")])
call("revision_exists", "revision_exists")(
    lambda: [api.revision_exists(REPO, name) for name in ("latest", "3", "v2", "champion", COMMITS[0])]
)
call("file_exists")(lambda: [api.file_exists(REPO, FILE), api.file_exists(REPO, "tokenizer.json")])
call("list_models")(lambda: [each.id for each in api.list_models(search="digits")])
call("list_models filter")(
    lambda: [each.id for each in api.list_models(author="rcmae", filter="onnx", sort="lastModified", limit=5)]
)
call("list_models pages")(lambda: len(list(api.list_models(author="rcmae", full=True))))
call("list_models cardData")(lambda: [_of_card(each) for each in api.list_models(search="digits-onnx", cardData=True)])


def _of_card(info):
    card = info.card_data
    return card["license"] if isinstance(card, dict) else card.license


def _info(info):
    return {
        "id": info.id, "sha": info.sha, "downloads": info.downloads, "likes": info.likes, "tags": info.tags,
        "pipeline": info.pipeline_tag, "modified": str(info.last_modified or info.lastModified)[:4],
        "library": info.library_name, "license": _of_card(info),
    }  # fmt: skip


@call("model_info expand", "auth_check")  # they came together
def _():
    info = api.model_info(REPO, expand=["downloads", "likes", "createdAt"])
    return [type(info.downloads).__name__, info.likes, info.siblings, bool(info.created_at)]


# --- files ------------------------------------------------------------------------------------------------------------

call("list_repo_files")(lambda: sorted(api.list_repo_files(REPO)))
call("list_repo_tree", "list_repo_tree")(
    lambda: sorted(each.path for each in api.list_repo_tree(REPO, recursive=True, expand=True))
)
call("list_files_info", "list_files_info")(
    lambda: [each.path for each in api.list_files_info(REPO, [FILE, "card"], expand=True)]
)
call("get_paths_info", "get_paths_info")(
    lambda: [[each.path, each.last_commit.oid] for each in api.get_paths_info(REPO, [FILE, "card", "x"], expand=True)]
)
call("list_repo_refs")(
    lambda: sorted(each.name for each in api.list_repo_refs(REPO).branches + api.list_repo_refs(REPO).tags)
)
call("list_repo_commits")(lambda: [each.commit_id for each in api.list_repo_commits(REPO, revision="v2")])
call("list_repo_commits pages")(lambda: len(api.list_repo_commits("rcmae/history")))
call("hf_hub_url")(lambda: metadata_of(hf_hub_url(REPO, WEIGHTS, endpoint=ENDPOINT), token=TOKEN).commit_hash)
call("get_hf_file_metadata")(lambda: metadata_of(hf_hub_url(REPO, WEIGHTS, endpoint=ENDPOINT), token=TOKEN).size)
call("get_safetensors_metadata", "get_safetensors_metadata")(lambda: api.get_safetensors_metadata(REPO).parameter_count)
call("parse_safetensors_file_metadata", "parse_safetensors_file_metadata")(
    lambda: api.parse_safetensors_file_metadata(REPO, WEIGHTS).parameter_count
)
call("ModelCard.load")(lambda: ModelCard.load(REPO, token=TOKEN).data.license)


@call("hf_hub_download")
def _():
    found = {}
    for revision in (None, "main", "v2", "2", "latest", "champion", COMMITS[0]):
        path = hf_hub_download(REPO, FILE, revision=revision, endpoint=ENDPOINT, token=TOKEN)
        found[str(revision)] = Path(path).parent.name
    return found


@call("hf_hub_download offline")
def _():
    return Path(hf_hub_download(REPO, FILE, revision="v2", local_files_only=True)).parent.name


@call("snapshot_download")
def _():
    folder = Path(snapshot_download(REPO, endpoint=ENDPOINT, token=TOKEN))
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@call("snapshot_download patterns")
def _():
    folder = Path(snapshot_download(
        f"{REPO}-onnx", revision="v1", endpoint=ENDPOINT, token=TOKEN, allow_patterns=["*.onnx"], local_dir="patterns",
    ))  # fmt: skip
    return sorted(file.name for file in folder.iterdir() if file.is_file())


call("snapshot_download offline")(lambda: Path(snapshot_download(REPO, local_files_only=True)).name)
call("snapshot_download dry_run", "verify_repo_checksums")(
    lambda: sorted(each.filename for each in snapshot_download(REPO, endpoint=ENDPOINT, token=TOKEN, dry_run=True))
)
call("verify_repo_checksums", "verify_repo_checksums")(
    lambda: [
        getattr(api.verify_repo_checksums(REPO), name) for name in ("checked_count", "mismatches", "missing_paths")
    ]
)

# --- the file system --------------------------------------------------------------------------------------------------

call("HfFileSystem.ls")(lambda: sorted(files.ls(REPO, detail=False)))
call("HfFileSystem.ls revision")(lambda: sorted(files.ls(f"{REPO}@v2", detail=False)))
call("HfFileSystem.glob")(lambda: sorted(files.glob(f"{REPO}/**/*.png") + files.glob(f"{REPO}@v2/c*.json")))
call("HfFileSystem.info")(lambda: [files.info(f"{REPO}/{FILE}")[key] for key in ("type", "name")])
call("HfFileSystem.exists")(lambda: [files.exists(f"{REPO}/{FILE}"), files.exists(f"{REPO}/none")])
call("HfFileSystem.cat")(lambda: json.loads(files.cat(f"{REPO}@v2/{FILE}"))["model_type"])
call("HfFileSystem.du")(lambda: files.du(f"{REPO}/card"))


@call("HfFileSystem.open")
def _():
    with files.open(f"{REPO}/{WEIGHTS}", block_size=1000) as stream:
        stream.seek(8)
        return stream.read(1).decode()


# --- refusals ---------------------------------------------------------------------------------------------------------

call("missing repository")(lambda: hf_hub_download("rcmae/none", FILE, endpoint=ENDPOINT, token=TOKEN))
call("missing revision")(lambda: hf_hub_download(REPO, FILE, revision="v99", endpoint=ENDPOINT, token=TOKEN))
call("missing entry")(lambda: hf_hub_download(REPO, "tokenizer.json", endpoint=ENDPOINT, token=TOKEN))
call("missing route")(lambda: list(api.get_repo_discussions(REPO)))
call("missing organisation")(lambda: api.model_info("digits"))
call("missing token")(lambda: HfApi(endpoint=ENDPOINT, token=False).model_info(REPO))
call("bad token")(lambda: HfApi(endpoint=ENDPOINT, token="hf_wrong").model_info(REPO))
call("bad token whoami")(lambda: HfApi(endpoint=ENDPOINT, token="hf_wrong").whoami())
call("write")(lambda: api.create_repo("rcmae/new"))

# --- the command line -------------------------------------------------------------------------------------------------


@call("command whoami")
def _():
    return command("hf", "auth", "whoami") if NEW else command("huggingface-cli", "whoami")


@call("command login")
def _():
    words = ["hf", "auth", "login"] if NEW else ["huggingface-cli", "login"]
    command(*words, "--token", TOKEN)
    return (Path(os.environ["HF_HOME"]) / "token").read_text() == TOKEN


@call("command download")
def _():
    command("hf" if NEW else "huggingface-cli", "download", REPO, "--revision", "v2", "--local-dir", "downloaded")
    return sorted(file.name for file in Path("downloaded").iterdir() if file.is_file())


call("command models ls", "verify_repo_checksums")(lambda: command("hf", "models", "ls", "--search", "digits"))
call("command models ls files", "verify_repo_checksums")(lambda: command("hf", "models", "ls", REPO, "-R"))
call("command models info", "verify_repo_checksums")(lambda: command("hf", "models", "info", REPO))
call("command models card", "verify_repo_checksums")(lambda: command("hf", "models", "card", REPO))
call("command cache verify", "verify_repo_checksums")(lambda: command("hf", "cache", "verify", REPO))

report = {"version": huggingface_hub.__version__}
for name, (needs, function) in calls.items():
    report[name] = reported(function) if not needs or hasattr(HfApi, needs) else {"absent": needs}
Path("report.json").write_text(json.dumps(report, default=str))
