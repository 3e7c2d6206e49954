"""What the service says of itself in `/openapi.json`: its domains' routes and errors, with examples.

A new route has one row in the `operations` of its domain, and an error one. People make clients out of this document,
so the names in it stay.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from service import examples
from service.access import operations as access
from service.backbones import operations as backbones
from service.cluster import operations as cluster
from service.http.openapi import CODES, Description, Operation
from service.jobs import operations as jobs
from service.searches import operations as searches

ABOUT: Final = """
Pretrain vision backbones with RC-MAE on your own machines, and pull what was pretrained.

- **Tokens.** Requests below `/v1` and `/hf` carry `Authorization: Bearer <token>`.
- **Errors** are `application/problem+json` (RFC 9457) with a `code` that stays and a `detail` for people; those of a
  spec list each field with its JSON pointer in `problems`. Each operation lists the codes it answers with. Beside them
  there are `method_not_allowed` (405) and `internal_error` (500).
- **Lists** are `{items, next_cursor}`: give `next_cursor` as `cursor` for the items that follow.
- **Repeating.** Reads may be repeated, and so may submitting and adding trials, with the same `Idempotency-Key`. After
  503 try again shortly: nothing was changed.
- **Times** are UTC. Fields may be added to answers; unknown ones in requests are refused.
- Every answer has `X-Request-ID`: the one that was sent, or a new one. It is also in the service's log.
"""

TAGS: Final = {
    "jobs": "Submitting, watching and steering jobs.",
    "searches": "Hyperparameter searches: their trials, budgets and figures. A search is a job of kind `search` too.",
    "backbones": "What was pretrained: registered versions and their files.",
    "hub": "The same by the Hugging Face Hub's protocol, to read: `HF_ENDPOINT=<this server>/hf`.",
    "cluster": "What the machines have, who uses it, and who waits for it.",
    "access": "Tokens, and who did what.",
    "health": "For load balancers and monitoring. No token is needed.",
}

PROMETHEUS: Final = {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/openmetrics-text")}
HEALTH: Final[dict[str, Operation]] = {
    "GET /metrics": Operation("get_metrics", (), {200: {"description": "The metrics.", "content": PROMETHEUS}}),
    "GET /healthz": Operation("get_health"),
    "GET /readyz": Operation("get_readiness"),
}

API: Final = Description(
    info={
        "title": "rcmae",
        "version": version("rcmae"),
        "summary": "Self-hosted pretraining of vision backbones",
        "description": ABOUT,
        "license_info": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    },
    tags=TAGS,
    codes=CODES | jobs.CODES | searches.CODES | backbones.CODES | access.CODES,
    operations=(
        jobs.OPERATIONS | searches.OPERATIONS | backbones.OPERATIONS | cluster.OPERATIONS | access.OPERATIONS | HEALTH
    ),
    bodies=examples.BODIES,
    parameters=examples.PARAMETERS,
    operation_parameters=examples.OPERATION_PARAMETERS,
    answers=examples.ANSWERS,
)
