"""Descriptions of the routes of backbones and of the hub for `/openapi.json`, and their error codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.backbones.signature_schemas import SIGNATURE_FILE
from service.http.openapi import ETAG, RANGE_HEADERS, WITH_BODY, Operation, file_answers

TAR: Final = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}
MARKDOWN: Final = {"text/markdown": {"schema": {"type": "string"}}}
FILE: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
VERSION: Final = ("version_not_found", "version_gone")
REPO: Final = ("repo_not_found", "revision_not_found")
ENTRY: Final = (*REPO, "entry_not_found")


def _file_or_link(content: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The responses of a route that sends a file or redirects to it."""
    link = {"Location": {"description": "A signed link into S3.", "schema": {"type": "string"}}}
    redirect = {"description": "With `RCMAE_PRESIGNED_DOWNLOADS`: a redirect to the file.", "headers": ETAG | link}
    return file_answers(content) | {302: redirect}


CODES: Final[dict[str, tuple[int, str]]] = {
    "backbone_not_found": (404, "no such backbone is registered"),
    "version_not_found": (404, "the backbone has no such version"),
    "format_not_found": (404, "the version has no such format"),
    "alias_not_found": (404, "the backbone has no such alias"),
    "retention_rule_not_found": (404, "the backbone has no retention rule"),
    "signature_not_found": (404, "the version is not signed"),
    "repo_not_found": (404, "there is no such repository; `X-Error-Code: RepoNotFound`"),
    "revision_not_found": (404, "the repository has no such revision; `X-Error-Code: RevisionNotFound`"),
    "entry_not_found": (404, "the revision has no such file; `X-Error-Code: EntryNotFound`"),
    "version_gone": (410, "somebody deleted the version in MLflow: it cannot be pulled"),
    "champion_rule_not_found": (404, "the backbone has no rule for its champion"),
    "champion_refused": (409, "the version does not meet the rule for the champion, or the rule protects the champion"),
    "version_needed": (409, "a job that has not ended needs the version: wait for its end, or pause or cancel it"),
    "version_has_alias": (409, "an alias points at the version: move or remove the alias first"),
}
"""The status and the cause of each error."""

OPERATIONS: Final[dict[str, Operation]] = {
    "GET /v1/backbones": Operation("list_backbones"),
    "GET /v1/backbones/{name}": Operation("get_backbone", ("backbone_not_found",)),
    "PATCH /v1/backbones/{name}": Operation("change_backbone", ("forbidden", "backbone_not_found")),
    "PATCH /v1/backbones/{name}/versions/{version}": Operation(
        "change_backbone_version", ("forbidden", "version_not_found")
    ),
    "GET /v1/backbones/{name}/versions/{version}": Operation("get_backbone_version", VERSION),
    "GET /v1/backbones/{name}/versions/{version}/evaluations.md": Operation(
        "get_backbone_evaluations", ("version_not_found",), {200: {"description": "The addendum.", "content": MARKDOWN}}
    ),
    "GET /v1/backbones/{name}/versions/{version}/files/{path}": Operation(
        "download_backbone_file", (*VERSION, "file_not_found"), _file_or_link(FILE), RANGE_HEADERS
    ),
    "HEAD /v1/backbones/{name}/versions/{version}/files/{path}": Operation(
        "check_backbone_file", (*VERSION, "file_not_found"), file_answers({}), RANGE_HEADERS
    ),
    f"GET /v1/backbones/{{name}}/versions/{{version}}/files/{SIGNATURE_FILE}": Operation(
        "download_backbone_signature", (*VERSION, "signature_not_found"), file_answers(FILE), RANGE_HEADERS
    ),
    f"HEAD /v1/backbones/{{name}}/versions/{{version}}/files/{SIGNATURE_FILE}": Operation(
        "check_backbone_signature", (*VERSION, "signature_not_found"), file_answers({}), RANGE_HEADERS
    ),
    "GET /v1/backbones/{name}/versions/{version}/signature": Operation(
        "get_backbone_signature", (*VERSION, "signature_not_found")
    ),
    "GET /v1/backbones/{name}/versions/{version}/users": Operation(
        "list_backbone_users", ("forbidden", "version_not_found")
    ),
    "GET /v1/backbone-space": Operation("get_backbone_space", ("forbidden",)),
    "GET /v1/signing-keys": Operation("list_signing_keys"),
    "GET /v1/backbone-comparison": Operation("compare_backbones", ("version_not_found",)),
    "DELETE /v1/backbones/{name}/versions/{version}": Operation(
        "delete_backbone_version", ("forbidden", "version_not_found", "version_has_alias", "version_needed")
    ),
    "GET /v1/backbones/{name}/versions/{version}/archive": Operation(
        "download_backbone_archive", (*VERSION, "file_not_found", "format_not_found"), file_answers(TAR), RANGE_HEADERS
    ),
    "HEAD /v1/backbones/{name}/versions/{version}/archive": Operation(
        "check_backbone_archive", (*VERSION, "file_not_found", "format_not_found"), file_answers({}), RANGE_HEADERS
    ),
    "PUT /v1/backbones/{name}/aliases/{alias}": Operation(
        "set_backbone_alias", ("forbidden", "backbone_not_found", *VERSION, "champion_refused")
    ),
    "DELETE /v1/backbones/{name}/aliases/{alias}": Operation(
        "delete_backbone_alias", ("forbidden", "backbone_not_found", "alias_not_found", "champion_refused")
    ),
    "GET /v1/backbones/{name}/alias-moves": Operation("list_alias_moves", ("backbone_not_found",)),
    "GET /v1/backbones/{name}/champion-check": Operation("check_champion", ("backbone_not_found", "version_not_found")),
    "PUT /v1/backbones/{name}/champion-rule": Operation("set_champion_rule", ("forbidden", "backbone_not_found")),
    "DELETE /v1/backbones/{name}/champion-rule": Operation(
        "remove_champion_rule", ("forbidden", "backbone_not_found", "champion_rule_not_found")
    ),
    "GET /v1/backbones/{name}/retention": Operation("get_backbone_retention", ("backbone_not_found",)),
    "PUT /v1/backbones/{name}/retention": Operation("set_backbone_retention", ("forbidden", "backbone_not_found")),
    "DELETE /v1/backbones/{name}/retention": Operation(
        "remove_backbone_retention", ("forbidden", "backbone_not_found", "retention_rule_not_found")
    ),
    "GET /hf/{org}/{repo}/resolve/{revision}/{path}": Operation(
        "hub_download", (*ENTRY, "file_not_found"), _file_or_link(FILE), RANGE_HEADERS
    ),
    "HEAD /hf/{org}/{repo}/resolve/{revision}/{path}": Operation(
        "hub_check", (*ENTRY, "file_not_found"), _file_or_link({}), RANGE_HEADERS
    ),
    "GET /hf/{org}/{repo}/raw/{revision}/{path}": Operation(
        "hub_raw", (*ENTRY, "file_not_found"), _file_or_link(FILE), RANGE_HEADERS
    ),
    "HEAD /hf/{org}/{repo}/raw/{revision}/{path}": Operation(
        "hub_check_raw", (*ENTRY, "file_not_found"), _file_or_link({}), RANGE_HEADERS
    ),
    "GET /hf/api/whoami-v2": Operation("hub_who_am_i"),
    "GET /hf/api/models": Operation("hub_models"),
    "GET /hf/api/models/{org}/{repo}": Operation("hub_model", REPO),
    "GET /hf/api/models/{org}/{repo}/auth-check": Operation("hub_check_access", REPO[:1]),
    "GET /hf/api/models/{org}/{repo}/refs": Operation("hub_refs", REPO[:1]),
    "GET /hf/api/models/{org}/{repo}/commits/{revision}": Operation("hub_commits", REPO),
    "POST /hf/api/models/{org}/{repo}/paths-info/{revision}": Operation("hub_paths", (*REPO, *WITH_BODY)),
    "GET /hf/api/models/{org}/{repo}/revision/{revision}": Operation("hub_model_at", REPO),
    "GET /hf/api/models/{org}/{repo}/tree/{revision}": Operation("hub_tree", REPO),
    "GET /hf/api/models/{org}/{repo}/tree/{revision}/{path}": Operation("hub_tree_below", ENTRY),
}
"""One entry for each route."""
