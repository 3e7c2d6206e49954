"""MLflow's server asks for a password before it does anything."""

from __future__ import annotations

import base64
from importlib.metadata import entry_points

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from service.embedded.folder import MLFLOW_APP
from service.embedded.mlflow_app import Guard, create_app

PASSWORD = "a:password with ü"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.fixture
def client() -> TestClient:
    return TestClient(Guard(PlainTextResponse("inside"), PASSWORD))


@pytest.mark.parametrize("path", ["/", "/api/2.0/mlflow/runs/get", "/health/", "//health"])
@pytest.mark.parametrize(
    "header",
    [None, "", "Basic", "Bearer", "Basic !", basic("rcmae"), basic("rcmae:"), basic("rcmae:wrong"), basic(PASSWORD),
     "Bearer wrong", f"Token {PASSWORD}"],
)  # fmt: skip
def test_nothing_is_told_without_the_password(client, path, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = client.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert "inside" not in answer.text


@pytest.mark.parametrize("header", [basic(f"rcmae:{PASSWORD}"), basic(f"anna:{PASSWORD}"), f"bearer {PASSWORD}"])
def test_the_password_opens(client, header):
    assert client.get("/", headers={"Authorization": header.encode()}).text == "inside"


def test_the_supervisor_needs_none(client):
    assert client.get("/health").text == "inside"


def test_a_websocket_needs_it_too(client):
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass


def test_mlflow_finds_the_application():
    (found,) = entry_points(group="mlflow.app", name=MLFLOW_APP)
    assert found.load() is create_app
