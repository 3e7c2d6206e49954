"""`docker-compose.yml` with a real engine: from nothing to a backbone, then every service killed under a running job.

The tests are one story, in this order: `make test-deploy`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from deployment import (
    CHECKOUT,
    LONG_RUNNING,
    PROJECT,
    SCALE,
    Deployment,
    Transcript,
    open_ports,
    out,
    owners,
    poll,
    remove_leftovers,
    started,
)
from PIL import Image

from rcmae import Client
from service.client.errors import ApiError
from service.jobs.schemas import JobView
from service.jobs.state import State

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(3600)]

IMAGES = 320
KILL_SECONDS = 40
"""Training that a job has before it, when a service is killed under it."""
KILLS: list[list[object]] = []
SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "name": "shapes",
    "dataset": {"uri": "s3://rcmae-datasets/shapes"},
    "model": {
        "preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4,
        "decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 60, "global_batch_size": 80, "base_lr": 3e-3},
    "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "checkpoint": {"every_epochs": 20},
    "evaluation": {"every_epochs": 30, "probes": []},
    "register_as": "shapes",
}  # fmt: skip

SEARCH: dict[str, Any] = {
    "kind": "search",
    "name": "rates",
    "base": {name: part for name, part in SPEC.items() if name not in {"kind", "name", "register_as"}} | {
        "optimization": {"epochs": 6, "global_batch_size": 80},
        "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
        "evaluation": {"every_epochs": 3, "probes": []},
    },
    "space": {"optimization.base_lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    "objective": {"metric": "eval/reconstruction_ratio"},
    "scheduler": {"name": "none"},
    "budget": {"trials": 3, "concurrency": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def transcript() -> Iterator[Transcript]:
    made = Transcript()
    yield made
    made.write(CHECKOUT / "tests" / "deploy" / "results.md")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, transcript: Transcript) -> Iterator[Deployment]:
    """A fresh copy of the checkout; all of it, with its volumes, is gone in the end."""
    made = Deployment(tmp_path_factory.mktemp("checkout"))  # fails in a sentence where there is no engine
    remove_leftovers()
    yield made
    if (made.folder / ".env").exists():
        logs = subprocess.run(
            made.compose_line("logs", "--no-color"), **made.options(), capture_output=True, check=False
        )
        (made.folder.parent / "compose.log").write_bytes(logs.stdout)
        made.compose("down", "--volumes", "--remove-orphans")
    transcript.say("down, with its volumes")


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Iterator[Client]:
    with Client(deployment.url, (deployment.secrets / "admin_token").read_text(), patience_s=120) as made:
        yield made


def test_nothing_starts_without_secrets(deployment, transcript):
    refused = subprocess.run(
        deployment.compose_line("up", "-d"), **deployment.options(), capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "run rcmae init-deploy first" in refused.stdout + refused.stderr
    transcript.say("`up` without secrets is refused: run rcmae init-deploy first")


def test_secrets_are_made_once_and_only_their_owners(deployment, transcript):
    deployment.rcmae("init-deploy")
    env = deployment.folder / ".env"
    text = env.read_text()
    deployment.rcmae("init-deploy")
    assert env.read_text() == text
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert stat.S_IMODE(deployment.secrets.stat().st_mode) == 0o700
    assert ".env" in out("git", "check-ignore", ".env", cwd=CHECKOUT)
    transcript.say(".env (mode 0600) and .secrets/ (mode 0700) written; a second time changes nothing")


def test_from_nothing_to_healthy_in_order(deployment, transcript):
    before = open_ports()
    begin = time.monotonic()
    deployment.compose("build")
    transcript.say(f"images built in {time.monotonic() - begin:.0f} s")
    begin = time.monotonic()
    deployment.up()
    transcript.say(f"`up` returned after {time.monotonic() - begin:.0f} s")
    deployment.wait_healthy()
    transcript.say(f"everything healthy {time.monotonic() - begin:.0f} s after `up` began")
    first = {name: min(map(started, deployment.containers(name))) for name in LONG_RUNNING}
    rows = sorted(first.items(), key=lambda row: row[1])
    transcript.table(
        "Order of starting", ["service", "seconds"],
        [[name, f"{(moment - rows[0][1]).total_seconds():.1f}"] for name, moment in rows],
    )  # fmt: skip
    for earlier, later in (
        ("postgres", "mlflow"), ("mlflow", "controller"), ("ray-head", "ray-worker"), ("s3", "controller"),
        ("controller", "api"), ("api", "front"),
    ):  # fmt: skip
        assert first[earlier] < first[later], f"{later} before {earlier}"
    _sizes(transcript)
    _ports(deployment, transcript, before)


def _sizes(transcript: Transcript) -> None:
    listed = out("docker", "images", "--format", "{{.Repository}}:{{.Tag}}\t{{.Size}}").splitlines()
    ours = sorted(line.split("\t") for line in listed if line.startswith(("rcmae/", "rcmae-tests/", "python:")))
    transcript.table("Images", ["image", "size"], ours)


def _ports(deployment: Deployment, transcript: Transcript, before: set[int]) -> None:
    """Ports that the machine has more than before, less those of other programs that began meanwhile."""
    after, known = open_ports(), owners()
    opened = {port for port in after - before if known.get(port, "docker-proxy") == "docker-proxy"}
    assert opened == {deployment.port}
    listed = out("docker", "ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}")
    assert re.findall(r"[\d.:\[\]]+->\d+", listed) == [f"127.0.0.1:{deployment.port}->8080"]
    transcript.say("scan of the machine's 65,535 ports: one opened, that of the API")


def test_the_service_is_ready_and_answers_at_its_one_port(client, deployment, transcript):
    poll(client.ready, bool, 120)
    shape = client.cluster()
    workers = [node for node in shape.nodes if node.cpus]
    assert len(workers) == 2
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{deployment.url}/metrics")
    assert refused.value.code == 404
    transcript.say(f"ready: {len(shape.nodes)} Ray nodes, {shape.totals.cpus} CPUs for training")


def test_no_secret_shows_and_nothing_takes_another_or_none(deployment, transcript):
    secrets = {
        name: value for name, value in deployment.variables().items() if re.search("TOKEN|PASSWORD|SECRET$", name)
    }
    containers = [container for name in LONG_RUNNING for container in deployment.containers(name)]
    shown = out("docker", "inspect", *containers)
    assert not [name for name, value in secrets.items() if value in shown]
    for name in LONG_RUNNING:
        assert deployment.execute(name, "id", "-u").strip() != "0", name
    looks = {
        "Postgres, no password": "import psycopg; psycopg.connect('host=postgres user=rcmae')",
        "Postgres, a usual password": "import psycopg as p; p.connect('host=postgres user=postgres password=postgres')",
        "S3, no credentials": "import urllib.request as r; r.urlopen('http://s3:8333/rcmae-artifacts')",
        "S3's other servers": "import socket; socket.create_connection(('s3', 9333), 3)",
        "Ray, no token": "import urllib.request as r; r.urlopen('http://ray-head:8265/api/jobs/')",
        "the world outside": "import socket; socket.create_connection(('192.0.2.1', 443), 3)",
    }
    rows, api = [], deployment.containers("api")[0]
    for name, code in looks.items():
        done = subprocess.run(
            ["docker", "exec", api, "env", "-u", "PGSERVICE", "python", "-c", code],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode != 0, name
        rows.append([name, "from an API", done.stderr.strip().splitlines()[-1][:110]])
    done = subprocess.run(
        ["docker", "exec", deployment.containers("ray-worker")[0], "getent", "hosts", "postgres"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    rows.append(["Postgres", "from a Ray worker", "no such name: on no network of its own"])
    for database in ("rcmae", "mlflow"):
        way = f"service=rcmae_studies host=postgres user=rcmae_studies dbname={database}"
        done = subprocess.run(
            ["docker", "exec", deployment.containers("ray-head")[0], "python", "-c",
             f"import psycopg; psycopg.connect({way!r})"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert f'permission denied for database "{database}"' in done.stderr
        rows.append(
            [f"Postgres's database {database}", "from Ray's head", "permission denied, with the password for trials"]
        )
    transcript.table("What is refused", ["what", "from where", "answer"], rows)


def test_a_dataset_goes_into_s3(deployment, transcript, tmp_path):
    numbers = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = np.full((32, 32, 3), numbers.integers(0, 256, 3), np.uint8)
        left, top = numbers.integers(0, 20, 2)
        pixels[top : top + 12, left : left + 12] = numbers.integers(0, 256, 3)
        Image.fromarray(pixels).save(tmp_path / f"{number:04d}.png")
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents:
        if "pytest" in folder.name:
            folder.chmod(0o755)
    said = deployment.compose("run", "--rm", "-T", "-v", f"{tmp_path}:/data:ro", "upload", "shapes")
    assert f"{IMAGES} files are at s3://rcmae-datasets/shapes" in said
    transcript.say(f"{IMAGES} images are in S3")


def test_a_job_trains_in_two_containers_and_its_backbone_is_pulled(client, deployment, transcript, tmp_path):
    with pytest.raises(ApiError) as refused:
        client.submit(SPEC | {"dataset": {"uri": "s3://rcmae-artifacts/runs"}})
    assert refused.value.status in {403, 422}
    transcript.say(f"a dataset outside of the roots is refused: {refused.value.status} {refused.value.code}")

    begin = time.monotonic()
    job = client.submit(SPEC)
    placed = poll(client.cluster, lambda found: any(run.nodes for run in found.running), 120).running[0]
    addresses = {node.id: node.address for node in client.cluster().nodes}
    job = _ended(client, job)
    assert job.state is State.SUCCEEDED, job.message
    transcript.say(f"job over REST: succeeded after {time.monotonic() - begin:.0f} s, {job.attempts} attempt")

    containers = {_address(container): container[:12] for container in deployment.containers("ray-worker")}
    ranks = deployment.python("controller", RANKS.format(run=job.run_id))
    where = [containers[addresses[rank["node"]]] for rank in sorted(ranks, key=lambda rank: rank["rank"])]
    assert len(set(where)) == 2
    assert sorted(placed.nodes) == sorted(rank["node"] for rank in ranks)
    transcript.say(f"DDP across containers: rank 0 in {where[0]}, rank 1 in {where[1]}")

    kept = deployment.python("controller", KEPT)
    assert any("/checkpoints/" in name for name in kept)
    assert any(name.endswith("/hf/model.safetensors") for name in kept)
    transcript.say(f"{len(kept)} artifacts of it are in S3")
    _pull(client, tmp_path / "backbone", transcript)

    submission = client.attempts(job.id)[-1].submission_id
    known = json.dumps(deployment.python("controller", RAY_JOB.format(submission=submission)))
    assert job.id in known
    assert not [name for name in deployment.variables().values() if len(name) >= 20 and name in known]
    transcript.say("Ray's record of the job holds no secret")


def test_a_search_keeps_its_trials_in_postgres(client, deployment, transcript):
    begin = time.monotonic()
    job = client.submit(SEARCH)
    job = _ended(client, job)
    assert job.state is State.SUCCEEDED, job.message
    trials = sorted(client.trials(job.id), key=lambda trial: trial.number)
    assert [trial.state.value for trial in trials] == ["complete"] * SEARCH["budget"]["trials"], trials
    (best,) = client.search(job.id).best
    assert best.values == min(trial.values for trial in trials)
    transcript.say(
        f"search over REST: {len(trials)} trials, succeeded after {time.monotonic() - begin:.0f} s; "
        f"the best is {best.number}: {best.values[0]:.4f}"
    )
    kept = deployment.python("ray-head", STUDY.format(study=job.id))
    assert kept["trials"] == [[trial.number, trial.values, trial.params] for trial in trials]
    assert kept["url"].startswith("postgresql+psycopg://rcmae_studies@postgres:5432/")
    transcript.say("its study is in Postgres, with the same values")


PAGES = ("overview", "metrics", "images", "logs", "checkpoints", "events", "spec")
"""Of a job."""


def test_the_dashboard_is_there_whichever_replica_answers(client, deployment, transcript):
    token = (deployment.secrets / "admin_token").read_text().strip()
    job, search = (next(iter(client.jobs(kind=kind))).id for kind in ("pretrain", "search"))
    with httpx.Client(base_url=deployment.url, follow_redirects=True, timeout=60) as browser:
        assert browser.get("/").url.path == "/login"
        assert browser.post("/login", data={"token": "wrong"}).status_code == 401
        page = browser.post("/login", data={"token": token}, headers={"Sec-Fetch-Site": "same-origin"})
        assert (page.status_code, page.url.path) == (200, "/")

        pages = ["/", "/jobs", "/jobs/new", "/searches", "/searches/new", "/backbones", "/backbones/shapes", "/cluster"]
        pages += ["/tokens", "/audit", f"/searches/{search}/trials", f"/searches/{search}/trials/0"]
        pages += [f"/jobs/{job}/{tab}" for tab in PAGES]
        pages += [f"/searches/{search}/{tab}" for tab in ("overview", "analysis", "logs", "config")]
        assets: set[str] = set()
        for path in pages * 2:  # with two replicas, each answers about once
            found = browser.get(path)
            assert (found.status_code, found.url.path) == (200, path)
            assert token not in found.text
            assets |= set(re.findall(r'(?:src|href)="(/assets/[^"]+)"', found.text))
        (styles,) = (each for each in assets if each.endswith("/app.css"))
        assets.add(styles.replace("app.css", "plotly.min.js"))  # which charts.js asks for
        for each in assets:
            assert browser.get(each).status_code == 200, each

        (csrf,) = re.findall('<meta name="csrf" content="([^"]+)">', page.text)
        assert browser.post("/v1/jobs/plan", json=SPEC).status_code == 401
        for _ in range(4):
            assert browser.post("/v1/jobs/plan", json=SPEC, headers={"X-CSRF-Token": csrf}).status_code == 200
        begin = time.monotonic()
        with browser.stream("GET", "/v1/stream") as stream:
            assert "event: jobs" in next(line for line in stream.iter_lines() if line)
        heard = time.monotonic() - begin
    # What ends TLS before the front says so, and nobody chooses the address of their line in the audit log.
    claims = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}
    answer = httpx.post(f"{deployment.url}/login", data={"token": token}, headers=claims)
    assert "; secure" in answer.headers["Set-Cookie"].lower()
    line = next(iter(client.audit(action="session.begin")))
    assert line.address not in {"203.0.113.9", *_addresses(deployment.containers("front")[0]), None}
    transcript.say(
        f"dashboard: {len(pages)} pages, twice each, and {len(assets)} assets over {SCALE['api']} replicas; "
        f"its stream told something after {heard:.1f} s"
    )


STUDY = """
import json, optuna, os
url = os.environ["RCMAE_STUDY_URL"]
found = optuna.load_study(study_name="{study}", storage=url).trials
print(json.dumps({{"url": url, "trials": [[trial.number, trial.values, trial.params] for trial in found]}}))
"""
RANKS = """
import json, s3fs
fs = s3fs.S3FileSystem()
print(json.dumps([json.loads(fs.cat_file(f)) for f in fs.find("rcmae-artifacts/runs")
                  if "/{run}/" in f and "/attempts/1/workers/" in f]))
"""
KEPT = """
import json, s3fs
print(json.dumps(s3fs.S3FileSystem().find("rcmae-artifacts/runs")))
"""
RAY_JOB = """
import json, pathlib, urllib.request as r
token = pathlib.Path("/run/secrets/ray_token").read_text().strip()
asked = r.Request("http://ray-head:8265/api/jobs/{submission}", headers={{"Authorization": "Bearer " + token}})
print(json.dumps(json.load(r.urlopen(asked))))
"""


def _pull(client: Client, folder: Path, transcript: Transcript) -> str:
    """Pull the newest version over the published port; gives the sha256 of its weights, which is the registry's."""
    version = client.pull("shapes", folder)
    wanted = {file.path: file.sha256 for file in client.version("shapes", version.version).files}
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == wanted["hf/model.safetensors"]
    transcript.say(f"backbone shapes:{version.version} pulled over the API; sha256 {digest[:16]}… as registered")
    return digest


def _addresses(container: str) -> list[str]:
    """Of each network that it is in."""
    networks = json.loads(out("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    return [str(network["IPAddress"]) for network in networks.values()]


def _address(container: str) -> str:
    (address,) = _addresses(container)
    return address


def _ended(client: Client, job: JobView, timeout_s: float = 600) -> JobView:
    found: JobView = poll(lambda: client.job(job.id), lambda seen: seen.state.terminal, timeout_s)
    return found


@pytest.mark.parametrize(
    "service", ["front", "api", "controller", "postgres", "mlflow", "s3", "ray-worker", "ray-head"]
)
def test_a_service_is_killed_under_a_running_job(service, client, deployment, transcript):
    poll(client.ready, bool, 180)
    epochs = _epochs(client)
    spec = SPEC | {"name": f"kill-{service}", "optimization": SPEC["optimization"] | {"epochs": epochs}}
    spec |= {"checkpoint": {"every_epochs": max(1, epochs // 8)}, "evaluation": {"every_epochs": epochs, "probes": []}}
    begin = time.monotonic()
    job = client.submit(spec)
    poll(lambda: client.job(job.id), lambda seen: seen.progress and seen.progress.step > epochs // 4, 240)
    struck = datetime.now().astimezone()
    back = deployment.crash(service)
    job = _ended(client, job)
    seconds = time.monotonic() - begin
    attempts = client.attempts(job.id)
    reasons = [attempt.reason for attempt in attempts if attempt.reason]
    row = [service, f"{back:.0f}", job.state.value, len(attempts), ", ".join(reasons) or "-", f"{seconds:.0f}"]
    KILLS.append(row)
    transcript.say(f"killed {service} under job {job.id}: {row[1:]}")
    assert job.state is State.SUCCEEDED, job.message
    assert job.progress is not None
    assert job.progress.step == job.progress.steps
    assert attempts[0].started_at < struck < attempts[-1].ended_at  # it was under way
    disturbed = service in {"ray-worker", "ray-head"}
    assert len(attempts) == (2 if disturbed else 1)
    deployment.wait_healthy()


def _epochs(client: Client) -> int:
    """How many keep a job busy for as long as a kill needs, by the first job's rate."""
    first = next(job for job in client.jobs() if job.name == "shapes")
    rates = sorted(point.value for point in client.metrics(first.id).series["throughput/images_per_s"])
    return max(100, int(rates[len(rates) // 2] * KILL_SECONDS / IMAGES))


def test_kill_table(transcript):
    assert len(KILLS) == len(LONG_RUNNING)
    head = ["killed", "healthy again after s", "job", "attempts", "reasons", "job's seconds in all"]
    transcript.table("Every service killed once under a running job", head, KILLS)


def test_down_and_up_keep_everything(client, deployment, transcript, tmp_path):
    before = _recorded(client, tmp_path / "before", transcript)
    begin = time.monotonic()
    deployment.compose("down")
    transcript.say(f"`down` took {time.monotonic() - begin:.0f} s")
    _up_again(client, deployment, transcript)
    assert _recorded(client, tmp_path / "after", transcript) == before
    transcript.say("the jobs, the search's trials and the backbone are as before")


def test_a_backup_brings_a_destroyed_deployment_back(client, deployment, transcript, tmp_path):
    """The commands of deploy/README.md. Nothing but `.env` and the backup is left in between."""
    before = _recorded(client, tmp_path / "before", transcript)
    backups = tmp_path / "backups"
    backups.mkdir()
    backups.chmod(0o777)  # the container's user is another
    admin = ["run", "--rm", "-T", "-v", f"{backups}:/backups", "admin"]
    made = json.loads(deployment.compose(*admin, "backup", "--deployment", "/backups/one", "--artifacts", "--json"))
    assert [(copy["name"], copy["engine"]) for copy in made["databases"]] == [
        (name, "postgres") for name in ("rcmae", "studies", "mlflow")
    ]
    transcript.say(f"`admin backup`: three databases and {made['artifacts']} artifacts, each with its sha256")
    deployment.compose("down", "--volumes")
    shutil.rmtree(deployment.secrets)
    transcript.say("destroyed, with its volumes and secret files")

    deployment.rcmae("init-deploy")
    deployment.compose("up", "--detach", "postgres", "s3", "buckets")
    deployment.compose(*admin, "restore", "--deployment", "/backups/one")
    _up_again(client, deployment, transcript)
    assert _recorded(client, tmp_path / "after", transcript) == before
    transcript.say("restored: the jobs, the search's trials and the backbone are as before")


def _recorded(client: Client, folder: Path, transcript: Transcript) -> Any:
    """What a deployment must not lose: its jobs, a search's trials, and the sha256 of a backbone."""
    jobs = {job.id: (job.state, job.attempts) for job in client.jobs()}
    (search,) = client.jobs(kind="search")
    return jobs, list(client.trials(search.id)), _pull(client, folder, transcript)


def _up_again(client: Client, deployment: Deployment, transcript: Transcript) -> None:
    begin = time.monotonic()
    deployment.up()
    deployment.wait_healthy()
    poll(client.ready, bool, 120)
    transcript.say(f"`up` again: ready after {time.monotonic() - begin:.0f} s")
