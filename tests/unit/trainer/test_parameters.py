"""A spec as MLflow's parameters."""

import pytest
from mlflow.utils.validation import _validate_param

from trainer.protocol.parameters import AT_ONCE, LENGTH, parameters, requests
from trainer.spec.job import parse_spec


def test_every_field_of_a_spec_is_a_parameter_under_its_dotted_path():
    spec = parse_spec({"kind": "pretrain", "dataset": {"uri": "/data/photos", "include": ["*.png"]}})
    found = parameters(spec.model_dump(mode="json"))
    assert found["dataset.uri"] == "file:///data/photos"
    assert found["dataset.include"] == '["*.png"]'
    assert found["method.teacher.momentum"] == "0.996"
    assert found["optimization.clip_grad_norm"] == "null"
    assert found["labels"] == "{}"


@pytest.mark.parametrize("label", ["a//b", "a/../b", "team", "a-b"])
def test_mlflow_takes_every_parameter_whatever_labels_are_called(label):
    spec = parse_spec({"kind": "pretrain", "dataset": {"uri": "/data/photos"}, "labels": {label: "vision"}})
    found = parameters(spec.model_dump(mode="json"))
    for name, text in found.items():
        _validate_param(name, text)
    assert [text for name, text in found.items() if name.startswith("labels")] in (
        ["vision"],
        [f'{{"{label}": "vision"}}'],
    )


def test_a_value_that_is_too_long_for_mlflow_is_cut_and_says_so():
    (text,) = parameters({"dataset": {"include": ["x" * 90] * 90}}).values()
    assert len(text) == LENGTH
    assert text.endswith("(cut)")


def test_parameters_are_sent_in_requests_that_mlflow_takes_and_never_twice():
    wanted = {f"p{number}": "1" for number in range(2 * AT_ONCE + 5)}
    sent = list(requests(wanted, {"p0": "other"}))
    assert [len(some) for some in sent] == [AT_ONCE, AT_ONCE, 4]
    assert dict(pair for some in sent for pair in some) == {name: "1" for name in wanted if name != "p0"}
