"""The content of `/openapi.json`: the routes and errors of all domains, with examples.

A new route or error needs one entry in the `operations` of its domain. Clients are generated from this document, so its
names are stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from service import examples
from service.access import operations as access
from service.auth.scopes import MEANINGS, Scope, requirement, roles_with
from service.backbones import operations as backbones
from service.cluster import operations as cluster
from service.evaluations import operations as evaluations
from service.http.openapi import CODES, Description, Operation
from service.jobs import operations as jobs
from service.searches import operations as searches
from service.webhooks import operations as webhooks

ABOUT: Final = """
Pretrain vision backbones with RC-MAE on your own machines, and pull the results.

- **Tokens.** Requests below `/v1` and `/hf` need the header `Authorization: Bearer <token>`.
  The token's role decides its scopes. Each operation lists the scopes that it needs and, as `x-roles`, the roles that
  have them; `!own` limits a scope to what the token's owner owns.
- **Errors** are `application/problem+json` (RFC 9457) with a stable `code` and a `detail` for people. Errors of a spec
  list each invalid field with its JSON pointer in `problems`. Each operation lists its error codes; in addition, every
  operation can return `method_not_allowed` (405), `host_not_allowed` (421) and `internal_error` (500).
- **Lists** are `{items, next_cursor}`: pass `next_cursor` as `cursor` to get the next page.
- **Retries.** Reads are safe to retry. So are submitting jobs and adding trials, with the same `Idempotency-Key`. After
  a 503, try again shortly: nothing was changed.
- **HEAD** is answered wherever GET is.
- **Times** are UTC. Responses may gain fields; unknown fields in requests are refused.
- Every response has an `X-Request-ID`: the one you sent, or a new one. It is also in the service's log.
"""

TAGS: Final = {
    "jobs": "Submit, watch and control jobs.",
    "searches": "Hyperparameter searches: trials, budgets and plots. Each search is also a job of kind `search`.",
    "backbones": "Pretrained backbones: registered versions and their files.",
    "evaluations": "How good backbones are on labelled images, beside networks without their training.",
    "hub": "Read-only access to backbones by the Hugging Face Hub's protocol: `HF_ENDPOINT=<this server>/hf`.",
    "cluster": "Nodes, running jobs and the queue.",
    "access": "Tokens and the audit log.",
    "webhooks": "Who hears of registered versions, aliases and deletions, signed as in Standard Webhooks.",
    "health": "For load balancers and monitoring. These routes need no token.",
}

PROMETHEUS: Final = {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/openmetrics-text")}
HEALTH: Final[dict[str, Operation]] = {
    "GET /metrics": Operation("get_metrics", (), {200: {"description": "The metrics.", "content": PROMETHEUS}}),
    "GET /healthz": Operation("get_health"),
    "GET /readyz": Operation("get_readiness"),
}


def _requirement(needed: Sequence[str]) -> tuple[str, list[str]]:
    scopes = [Scope(scope) for scope in needed]
    return requirement(scopes), [str(role) for role in roles_with(scopes)]


API: Final = Description(
    info={
        "title": "rcmae",
        "version": version("rcmae"),
        "summary": "Self-hosted pretraining of vision backbones",
        "description": ABOUT,
        "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    tags=TAGS,
    codes=CODES | jobs.CODES | searches.CODES | backbones.CODES | evaluations.CODES | access.CODES | webhooks.CODES,
    operations=(
        jobs.OPERATIONS
        | searches.OPERATIONS
        | backbones.OPERATIONS
        | evaluations.OPERATIONS
        | cluster.OPERATIONS
        | access.OPERATIONS
        | webhooks.OPERATIONS
        | HEALTH
    ),
    bodies=examples.BODIES,
    parameters=examples.PARAMETERS,
    operation_parameters=examples.OPERATION_PARAMETERS,
    answers=examples.ANSWERS,
    scopes={str(scope): meaning for scope, meaning in MEANINGS.items()},
    requirement=_requirement,
)
