"""Whether an evaluation's corruption errors can be relative to those of another one."""

from __future__ import annotations

from trainer.protocol.evaluation import Evaluation
from trainer.spec.evaluate import EvaluateSpec, Reference


def misfit(wanted: Reference, spec: EvaluateSpec, found: Evaluation, fingerprint: str | None = None) -> str:
    """Why the errors of ``spec`` cannot be relative to what its reference has ``found``; empty if they can.

    ``fingerprint``: identity of the test images of ``spec``, or of all its images where a share of them is held out;
    None: not known yet.
    """
    robustness, other = wanted.robustness, "name another evaluation, or leave reference out"
    own = [each for each in found.corruptions if each.weights == "backbone"]
    if not own:
        return f"{wanted.job} has measured no corruptions: {other}"
    if {(each.corruption, each.severity) for each in own} != {
        (name, severity) for name in robustness.corruptions for severity in robustness.severities
    }:
        corruptions = ", ".join(dict.fromkeys(each.corruption for each in own))
        severities = ", ".join(map(str, sorted({each.severity for each in own})))
        return (
            f"{wanted.job} has measured other corruptions or severities: {corruptions} at {severities}: measure the "
            "same ones here, or name another evaluation"
        )
    blind = [name for name in robustness.corruptions if all(each.top1 == 1 for each in own if each.corruption == name)]
    if blind:
        return f"{wanted.job} makes no error under {blind[0]}, so nothing can be divided by it: {other}"
    held_out = None if spec.test else spec.held_out
    if found.held_out != held_out or fingerprint not in {None, found.test.fingerprint}:
        theirs, ours = (_test(each) for each in (found.held_out, held_out))
        return (
            f"{wanted.job} was scored on {theirs} {found.test.title} ({found.test.images} images), and this evaluation "
            f"on {ours} {(spec.test or spec.dataset).uri}, which are others: name one of the same test images"
        )
    return ""


def _test(held_out: float | None) -> str:
    return "images of" if held_out is None else f"a held-out share of {held_out:g} of"
