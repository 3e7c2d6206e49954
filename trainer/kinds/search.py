"""Jobs that search for the best values of a spec. Each trial is a pretraining run, or an evaluation."""

from __future__ import annotations

from trainer.kinds.evaluate import work as evaluate
from trainer.kinds.pretrain import train
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.search.run import run_search
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.search import SearchSpec
from trainer.storage import Store


def run(request: AttemptRequest, store: Store) -> Outcome:  # noqa: ARG001 - the signature of every kind
    spec = request.spec
    if not isinstance(spec, SearchSpec):
        raise TypeError(f"a search with a spec of kind {spec.kind}")
    return run_search(request, spec, evaluate if isinstance(spec.base_spec, EvaluateSpec) else train)
