"""Errors as the hub's clients read them, in headers."""

from __future__ import annotations

import re
from typing import Final

from service.http.problems import ApiProblem, not_found
from trainer.spec import formats

LONGEST_MESSAGE: Final = 1000
"""Longest error message in a header, in characters."""
ERROR_CODES: Final = {
    "unauthorized": "GatedRepo",
    "forbidden": "GatedRepo",
    "repo_not_found": "RepoNotFound",
    "revision_not_found": "RevisionNotFound",
    "entry_not_found": "EntryNotFound",
    "file_not_found": "EntryNotFound",
}
"""The hub's codes for our errors. A missing token is reported as a gated repository: for one that is not found, the
hub's clients would say that its name is wrong. A route that does not exist has no code: clients then show our text."""
HINTS: Final = {
    "unauthorized": ". Set HF_TOKEN to a token of this service, or pass token=",
    "method_not_allowed": ": this hub is read-only. Jobs register backbones",
}
"""What is added to the message for the hub's clients."""
OTHER_KIND: Final = re.compile(r"(?:api/)?(datasets|spaces)/([^/]+(?:/[^/]+)?)(?:/.*)?")
"""Requests for repositories of kinds that this hub does not have."""
WITHOUT_ORGANISATION: Final = re.compile(
    r"api/models/([^/]+)(?:/(?:revision|tree|refs|commits|paths-info|auth-check)\b.*)?|([^/]+)/(?:resolve|raw)/.*"
)
"""Requests for a model whose name lacks the organisation."""


def problem_headers(code: str, detail: str) -> dict[str, str]:
    """The headers with an error's code and message, which the hub's clients read and show."""
    text = f"{detail}{HINTS.get(code, '')}"
    message = "".join(char if " " <= char <= "~" else "?" for char in text)  # headers allow only ASCII
    return {"X-Error-Message": message[:LONGEST_MESSAGE]} | (
        {"X-Error-Code": ERROR_CODES[code]} if code in ERROR_CODES else {}
    )


def no_such_route(path: str) -> ApiProblem:
    """Why nothing is found at a path below the hub's that no route has."""
    if other := OTHER_KIND.fullmatch(path):
        kind, name = other.groups()
        return ApiProblem(404, "repo_not_found", f"there is no {name!r} among the {kind}: this hub has models only")
    if bare := WITHOUT_ORGANISATION.fullmatch(path):
        name = bare[1] or bare[2]
        problem = not_found("repo", name)
        return ApiProblem(404, problem.code, f"{problem.detail}: write {formats.HUB_ORGANISATION}/{name}")
    return ApiProblem(404, "not_found", f"this hub has no route /{path}; your token is valid")
