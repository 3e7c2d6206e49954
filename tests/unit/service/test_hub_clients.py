"""Five versions of the Hub's client and four of transformers read backbones from the service: call by call.

Each version has an environment of its own, and one process there makes all calls; a test looks at what each call gave.
`pytest -s tests/unit/service/test_hub_clients.py` prints the table of calls and versions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from api_replicas import replicas
from backbone_files import FILES, Registry, commit_of
from backbones import model_of, shaken, statistics
from readers import report
from safetensors.torch import load_file
from service_fakes import FakeMlflow
from sqlalchemy import select

from service.db.database import Database
from service.db.tables import BackboneVersion
from trainer.export.graph import export_onnx, export_program
from trainer.export.huggingface import export_vit, export_vit_mae
from trainer.export.timm import export_timm
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.pretrain import MethodSpec, ModelSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first to ask for an environment makes it

SCRIPTS = Path(__file__).parents[2] / "clients"
TOKEN = "hf_token-of-the-tests-0123456789"
HUBS = {
    "0.19": "hub-0.19", "0.23": "transformers-4.40", "0.26": "transformers-4.46", "0.36": "transformers-4",
    "2.4": "transformers-5.24",
}  # fmt: skip
"""The environment with each version of the Hub's client."""
TRANSFORMERS = {
    "4.40": "transformers-4.40", "4.46": "transformers-4.46", "4.57": "transformers-4", "5.24": "transformers-5.24",
}  # fmt: skip
CARD = b"---\nlicense: mit\ntags:\n- own\n---\n# Digits\n![curves](card/curves.png)\n"
FORMATS = "timm,hf,hf-mae,onnx,torch_export"
REPOSITORIES = [f"rcmae/digits{ending}" for ending in ("", "-mae", "-timm", "-onnx", "-torch_export")]
WEIGHTS = "hf/model.safetensors"
OTHERS = 40
"""Backbones that make a list of two pages."""
VERSIONS = 60
"""Versions that make a history of two pages."""


def exported(model: ModelSpec, network: MaskedAutoencoder, folder: Path) -> dict[str, bytes]:
    """All formats of a network, as files by path."""
    weights, pixels = network.state_dict(), statistics(model.in_chans)
    export_timm(weights, model, *pixels, folder / "timm", license_id="mit", provenance={"job_id": "job-a"})
    export_vit(weights, model, *pixels, folder / "hf")
    export_vit_mae(weights, model, MethodSpec(), *pixels, folder / "hf-mae")
    export_onnx(weights, model, *pixels, folder / "onnx")
    export_program(weights, model, *pixels, folder / "torch_export")
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return files | {"README.md": CARD, "card/curves.png": FILES["card/curves.png"], "spec.json": b"{}"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A real API server with `digits`: two versions in all formats, the first one the champion. There are others."""
    root = tmp_path_factory.mktemp("hub")
    url = f"sqlite:///{root / 'rcmae.db'}"
    database = Database(url)
    database.migrate()
    registry = Registry(database, FakeMlflow(root), root)
    model = model_of(preset="vit_small_patch16_224")
    networks = [shaken(model, seed) for seed in (1, 2)]
    for number, network in enumerate(networks, 1):
        files = exported(model, network, tmp_path_factory.mktemp("exported"))
        registry.add(number=number, files=files, formats=FORMATS, method="rc_mae", network="teacher")
    registry.set_alias("digits", "champion", 1)
    for number in range(OTHERS):
        registry.add(f"other-{number:02}", formats="timm,hf,hf-mae")
    registry.add("history")
    with database.session() as session:  # one after the other would compare each with all
        first = session.scalars(select(BackboneVersion).where(BackboneVersion.name == "history")).one()
        columns = {column.name: getattr(first, column.name) for column in BackboneVersion.__table__.columns}
        session.add_all(BackboneVersion(**columns | {"version": number}) for number in range(2, VERSIONS + 1))
    database.close()
    commits = [commit_of(registry.folder("digits", number)) for number in (1, 2)]
    images = torch.randn(2, 3, model.height, model.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = [network.encode(images) for network in networks]
    with replicas(url, root, TOKEN, 1) as (server,):
        yield SimpleNamespace(
            endpoint=f"{server.url}/hf", commits=commits, images=images, tokens=tokens, model=model,
            sizes=sizes_in(registry.folder("digits", 1)),
            parameters=sum(value.numel() for value in load_file(registry.folder("digits", 1) / WEIGHTS).values()),
        )  # fmt: skip


def sizes_in(folder: Path) -> dict[str, int]:
    """The size of each file of the repository of the format `hf`."""
    files = {file.name: file for file in (folder / "hf").iterdir()}
    files |= {name: folder / name for name in ("README.md", "card/curves.png")}
    return {name: file.stat().st_size for name, file in files.items()}


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Calls by versions: whether each gave something or raised what it should is asserted call by call."""
    marks = {"gave": "gave", "raised": "raised", "absent": "-"}
    calls = [call for call in next(iter(reports.values())) if call != "version"]
    versions = [found["version"] for found in reports.values()]
    lines = ["", f"{'':<34} " + " ".join(f"{version:<8}" for version in versions)]
    for call in calls:
        cells = (next(marks[key] for key in marks if key in found[call]) for found in reports.values())
        lines.append(f"{call:<34} " + " ".join(f"{cell:<8}" for cell in cells))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def reports(hub: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """What all calls gave in an environment, by the script's name and the environment's; each pair runs once."""

    @functools.cache
    def found(script: str, environment: str) -> dict[str, Any]:
        arguments = {"endpoint": hub.endpoint, "token": TOKEN, "commits": hub.commits, "images": hub.images.tolist()}
        folder = tmp_path_factory.mktemp(environment) / "run"
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
        return report(environment, SCRIPTS / script, folder, arguments, **variables)

    return found


# --- the Hub's client -------------------------------------------------------------------------------------------------

TOP = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
ALL = ["README.md", "card/curves.png", *TOP[1:]]
IN_FILE_SYSTEM = ["README.md", "card", *TOP[1:]]

GIVES: dict[str, Callable[[SimpleNamespace], Any]] = {
    "whoami": lambda _: "admin",
    "auth_check": lambda _: None,
    "model_info revision": lambda hub: hub.commits[1],
    "model_info files_metadata": lambda hub: hub.sizes,
    "model_info securityStatus": lambda _: "rcmae/digits",
    "model_info expand": lambda _: ["int", 0, None, True],
    "repo_exists": lambda _: [True, False],
    "revision_exists": lambda _: [True, False, True, True, True],
    "file_exists": lambda _: [True, False],
    "list_models": lambda _: REPOSITORIES,
    "list_models filter": lambda _: ["rcmae/digits-onnx"],
    "list_models pages": lambda _: len(REPOSITORIES) + 3 * OTHERS + 3,
    "list_models cardData": lambda _: ["mit"],
    "list_repo_files": lambda _: ALL,
    "list_repo_tree": lambda _: sorted([*ALL, "card"]),
    "list_files_info": lambda _: ["config.json", "card/curves.png"],
    "get_paths_info": lambda hub: [["config.json", hub.commits[0]], ["card", hub.commits[0]]],
    "list_repo_refs": lambda _: ["champion", "main", "v1", "v2"],
    "list_repo_commits": lambda hub: hub.commits[::-1],
    "list_repo_commits pages": lambda _: VERSIONS,
    "hf_hub_url": lambda hub: hub.commits[0],
    "get_hf_file_metadata": lambda hub: hub.sizes["model.safetensors"],
    "get_safetensors_metadata": lambda hub: {"F32": hub.parameters},
    "parse_safetensors_file_metadata": lambda hub: {"F32": hub.parameters},
    "ModelCard.load": lambda _: "mit",
    "hf_hub_download": lambda hub: {
        "None": hub.commits[0], "main": hub.commits[0], "champion": hub.commits[0], hub.commits[0]: hub.commits[0],
        "v2": hub.commits[1], "2": hub.commits[1], "latest": hub.commits[1],
    },
    "hf_hub_download offline": lambda hub: hub.commits[1],
    "snapshot_download": lambda _: ALL,
    "snapshot_download patterns": lambda _: ["model.onnx"],
    "snapshot_download offline": lambda hub: hub.commits[0],
    "snapshot_download dry_run": lambda _: ALL,
    "verify_repo_checksums": lambda _: [len(ALL), [], []],
    "HfFileSystem.ls": lambda _: [f"rcmae/digits/{name}" for name in IN_FILE_SYSTEM],
    "HfFileSystem.ls revision": lambda _: [f"rcmae/digits@v2/{name}" for name in IN_FILE_SYSTEM],
    "HfFileSystem.glob": lambda _: ["rcmae/digits/card/curves.png", "rcmae/digits@v2/config.json"],
    "HfFileSystem.info": lambda _: ["file", "rcmae/digits/config.json"],
    "HfFileSystem.exists": lambda _: [True, False],
    "HfFileSystem.cat": lambda _: "vit",
    "HfFileSystem.du": lambda _: len(FILES["card/curves.png"]),
    "HfFileSystem.open": lambda _: "{",
    "command login": lambda _: True,
    "command download": lambda _: TOP,
}  # fmt: skip
"""What a call gives."""
SAYS = {
    "command whoami": ["admin", "rcmae"],
    "command models ls": [*REPOSITORIES, "image-feature-extraction", "torch_export"],
    "command models ls files": ALL,
    "command models info": ['"license": "mit"', '"downloads": ', '"library_name": "transformers"'],
    "command models card": ["license: mit", "# Digits"],
    "command cache verify": [f"Verified {len(ALL)} file(s)", "All checksums match"],
}
"""Parts of what a command prints."""
REFUSES = {
    "missing repository": ("RepositoryNotFoundError", "there is no repo 'rcmae/none'"),
    "missing revision": ("RevisionNotFoundError", "use main, v2, an alias or a commit"),
    "missing entry": ("EntryNotFoundError", "there is no file 'tokenizer.json' in rcmae/digits at main"),
    "missing organisation": ("RepositoryNotFoundError", "write rcmae/digits"),
    "missing token": ("GatedRepoError", "Set HF_TOKEN to a token of this service"),
    "bad token": ("GatedRepoError", "this service does not know the token"),
    "bad token whoami": ("HTTPError", "Invalid user token"),
    "missing route": ("HfHubHTTPError", "this hub has no route /api/models/rcmae/digits/discussions"),
    "write": ("HfHubHTTPError", "this hub is read-only"),
}
"""The class of the client's error, and a part of what it says."""
SINCE = {
    "revision_exists": "0.23", "list_repo_tree": "0.23", "get_paths_info": "0.23", "get_safetensors_metadata": "0.23",
    "parse_safetensors_file_metadata": "0.23", "auth_check": "0.26", "model_info expand": "0.26",
    "snapshot_download dry_run": "2.4", "verify_repo_checksums": "2.4", "command models ls": "2.4",
    "command models ls files": "2.4", "command models info": "2.4", "command models card": "2.4",
    "command cache verify": "2.4",
}  # fmt: skip
"""The first of these versions that has a call. `list_files_info` is in the oldest one alone."""


def missing_in(call: str, version: str) -> bool:
    versions = list(HUBS)
    if call == "list_files_info":
        return version != versions[0]
    return versions.index(version) < versions.index(SINCE.get(call, versions[0]))


def cases(calls: Iterable[str]) -> list[tuple[str, str]]:
    """Each call with each version that has it."""
    return [(call, version) for call in calls for version in HUBS if not missing_in(call, version)]


@pytest.mark.parametrize(("call", "version"), cases(GIVES))
def test_a_call_of_the_hubs_client(hub, reports, call, version):
    found = reports("hub_calls.py", HUBS[version])[call]
    assert "gave" in found, found["trace"]
    assert found["gave"] == GIVES[call](hub)


@pytest.mark.parametrize(("call", "version"), cases(SAYS))
def test_a_command_of_the_hubs_client(reports, call, version):
    found = reports("hub_calls.py", HUBS[version])[call]
    assert "gave" in found, found["text"]
    assert [part for part in SAYS[call] if part not in found["gave"]] == []


@pytest.mark.parametrize(("call", "version"), cases(REFUSES))
def test_a_refusal_is_the_right_error_and_says_why(reports, call, version):
    found = reports("hub_calls.py", HUBS[version])[call]
    kind, text = REFUSES[call]
    assert kind in {*found["raised"], *found["causes"]}, found
    assert text in found["text"]
    is_about_a_repository = kind in {"RepositoryNotFoundError", "GatedRepoError"}  # the second is a kind of the first
    assert ("RepositoryNotFoundError" in found["raised"]) == is_about_a_repository


@pytest.mark.parametrize("version", HUBS)
def test_every_call_that_a_version_has_is_made_and_looked_at(reports, version):
    found = reports("hub_calls.py", HUBS[version])
    assert set(found) - {"version", "model_info"} == {*GIVES, *SAYS, *REFUSES}
    assert {call for call in found if "absent" in found[call]} == {call for call in found if missing_in(call, version)}


@pytest.mark.parametrize("version", HUBS)
def test_a_model_as_the_hubs_client_has_it(hub, reports, version):
    found = dict(reports("hub_calls.py", HUBS[version])["model_info"]["gave"])
    tags = found.pop("tags")
    assert found.pop("downloads") <= 2, "however many clients have downloaded the two versions with this token"
    assert found == {
        "id": "rcmae/digits", "sha": hub.commits[0], "likes": 0, "modified": "2025", "license": "mit",
        "pipeline": "image-feature-extraction", "library": "transformers",
    }  # fmt: skip
    assert {"rcmae", "transformers", "rc_mae", "teacher", "v1", "own", "license:mit"} <= set(tags)


def test_the_table_of_calls_and_versions(reports):
    found = {version: reports("hub_calls.py", name) for version, name in HUBS.items()}
    assert all(found[version]["version"].startswith(f"{version}.") for version in HUBS)
    print(table(found))  # noqa: T201


# --- transformers -----------------------------------------------------------------------------------------------------


def loaded(reports: Any, version: str, call: str) -> Any:
    found = reports("transformers_calls.py", TRANSFORMERS[version])[call]
    assert "gave" in found, found["trace"]
    return found["gave"]


def difference(one: torch.Tensor, other: Any) -> float:
    return float((one - torch.tensor(other)).abs().max())


@pytest.mark.parametrize("version", TRANSFORMERS)
@pytest.mark.parametrize(
    ("call", "number"),
    [("", 1), (" revision", 2), (" number", 2), (" latest", 2), (" commit", 2)],
)
def test_transformers_loads_the_version_that_is_meant(hub, reports, version, call, number):
    assert difference(hub.tokens[number - 1], loaded(reports, version, f"AutoModel{call}")) < 1e-5


@pytest.mark.parametrize("version", TRANSFORMERS)
def test_transformers_loads_from_the_cache_without_a_network(hub, reports, version):
    tokens, pixels = loaded(reports, version, "offline")
    assert difference(hub.tokens[0], tokens) < 1e-5
    assert pixels == [1, 3, 32, 32]


@pytest.mark.parametrize("version", TRANSFORMERS)
def test_transformers_loads_the_processor_the_decoder_and_a_pipeline(hub, reports, version):
    patches = hub.model.patches
    assert loaded(reports, version, "AutoImageProcessor") == [1, 3, 32, 32]
    assert loaded(reports, version, "ViTMAEForPreTraining") == [[2, patches, hub.model.patch_values], 0, 0, 0]
    assert loaded(reports, version, "pipeline") == [[1, 1 + patches, 24], True]


@pytest.mark.parametrize("version", TRANSFORMERS)
@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("missing repository", "is not a valid model identifier"),
        ("missing revision", "is not a valid git identifier"),
        ("bad token", "gated repo"),
    ],
)
def test_transformers_says_what_is_missing(reports, version, call, told):
    found = reports("transformers_calls.py", TRANSFORMERS[version])[call]
    assert told in found["text"], found


def test_the_table_of_calls_and_versions_of_transformers(reports):
    found = {version: reports("transformers_calls.py", name) for version, name in TRANSFORMERS.items()}
    assert all(found[version]["version"].startswith(f"{version}.") for version in TRANSFORMERS)
    print(table(found))  # noqa: T201
