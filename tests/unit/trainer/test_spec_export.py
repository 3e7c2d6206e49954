"""What is exported, and jobs that publish: what a spec may say, and what it leaves to its method and images."""

import pytest
from pydantic import ValidationError

from trainer.protocol.request import AttemptRequest, Source
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape
from trainer.spec.export import ExportSpec, misfit
from trainer.spec.formats import BACKBONE_FORMATS
from trainer.spec.job import parse_pretrain, parse_spec
from trainer.spec.plan import gang, impossible, resolve
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.publish import PublishExport, PublishSpec

BASE = {"kind": "pretrain", "dataset": {"uri": "/data"}}
PUBLISH = {"kind": "publish", "job": "job-a", "register_as": "digits"}
WIDE = {"model": {"img_size": [32, 64], "patch_size": 8}}


def export_of(**parts) -> ExportSpec:
    return parse_pretrain(BASE | parts).export


def problems(data) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_by_default_the_teacher_for_timm_and_transformers():
    assert export_of() == ExportSpec(network="teacher", formats=("timm", "hf", "hf-mae"), license=None)


def test_mae_has_the_student_alone():
    assert export_of(method={"name": "mae"}).network == "student"
    told = problems(BASE | {"method": {"name": "mae"}, "export": {"network": "teacher"}})
    assert told == {"export.network": "method mae has no teacher: use student, or leave it out"}
    assert export_of(export={"network": "student"}).network == "student", "of RC-MAE it may be wanted too"


def test_what_images_that_are_not_square_cannot_have_is_left_out_or_refused_with_the_reason():
    assert export_of(**WIDE).formats == ("timm", "hf")
    assert export_of(**WIDE, export={"license": "mit"}).formats == ("timm", "hf")
    assert export_of(**WIDE, export={"formats": ["hf", "onnx"]}).formats == ("hf", "onnx")
    told = problems(BASE | WIDE | {"export": {"formats": ["hf", "hf-mae"]}})
    assert set(told) == {"export.formats"}
    assert "32 x 64" in told["export.formats"]
    assert "supports only square images" in told["export.formats"]
    assert export_of(model={"img_size": [32, 32], "patch_size": 8}).formats == ("timm", "hf", "hf-mae")


@pytest.mark.parametrize(
    ("export", "field", "told"),
    [
        ({"formats": ["tim"]}, "export.formats.0", "must be 'timm', 'hf', 'hf-mae', 'onnx' or 'torch_export'"),
        ({"formats": []}, "export.formats", f"name at least one of {', '.join(BACKBONE_FORMATS)}"),
        ({"formats": ["hf", "timm", "hf"]}, "export.formats", "name each format once: hf is repeated"),
        ({"network": "both"}, "export.network", "must be 'teacher' or 'student'"),
        ({"license": "my own"}, "export.license", "use an identifier such as"),
        ({"license": "mit\n"}, "export.license", "use an identifier such as"),
        ({"license": "acme", "license_link": "http://acme.example"}, "export.license_link", "use an https:// address"),
        ({"license_link": "https://acme.example"}, "export.license_link", "name the licence in export.license too"),
        ({"licence": "mit"}, "export.licence", "did you mean 'license'?"),
    ],
)
def test_what_is_refused(export, field, told):
    found = problems(BASE | {"export": export})
    assert set(found) == {field}
    assert told in found[field]


@pytest.mark.parametrize(
    "parts", [{}, WIDE, {"method": {"name": "mae"}}, {"export": {"formats": list(BACKBONE_FORMATS)}}]
)
def test_a_resolved_spec_exports_the_same(parts):
    spec = parse_pretrain(BASE | parts)
    resolved = resolve(spec, ClusterShape.of(4))
    assert resolved.export == spec.export
    assert parse_spec(resolved.model_dump(mode="json")) == resolved


def test_what_a_kept_checkpoint_cannot_have_is_known_before():
    assert misfit(ExportSpec(), "rc_mae", (32, 32)) is None
    assert misfit(ExportSpec(), "mae", (32, 32))[0] == "export.network"
    assert misfit(ExportSpec(), "rc_mae", (32, 64))[0] == "export.formats"
    assert misfit(ExportSpec(formats=("hf",)), "rc_mae", (32, 64)) is None


# --- jobs that publish -----------------------------------------------------------------------------------------------


def test_a_job_that_publishes():
    spec = parse_spec(PUBLISH)
    assert isinstance(spec, PublishSpec)
    assert (spec.name, spec.checkpoint, spec.export) == ("publish-digits", None, PublishExport())
    assert parse_spec(PUBLISH | {"export": None}) == spec
    spec = parse_spec(PUBLISH | {"checkpoint": "checkpoints/a2/00000100", "export": {"formats": ["onnx"]}})
    assert spec.checkpoint == "checkpoints/a2/00000100"
    assert spec.export == PublishExport(formats=("onnx",))
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_what_it_does_not_say_of_the_export_is_as_the_job_that_trained_says():
    trained = ExportSpec(formats=("hf", "onnx"), license="mit")
    assert PublishExport().over(trained) == trained
    assert PublishExport(network="student").over(trained) == ExportSpec(
        network="student", formats=("hf", "onnx"), license="mit"
    )
    assert PublishExport(formats=("timm",), license="other").over(trained) == ExportSpec(
        formats=("timm",), license="other"
    )
    linked = ExportSpec(license="acme", license_link="https://acme.example")
    assert PublishExport(formats=("timm",)).over(linked).license_link == "https://acme.example"
    assert PublishExport(license="mit").over(linked).license_link is None, "it led to the other licence"
    assert set(problems(PUBLISH | {"export": {"formats": []}})) == {"export.formats"}


def test_it_needs_one_process():
    spec = parse_spec(PUBLISH)
    assert resolve(spec, ClusterShape.of(4, 2)) == spec
    assert (gang(spec).workers, gang(spec).cpus, gang(spec).gpus) == (1, 1, 0)
    assert impossible(spec, ClusterShape.of(1)) is None
    assert set(problems(PUBLISH | {"resources": {"workers": 2, "gpus_per_worker": 1}})) == {
        "resources.workers", "resources.gpus_per_worker",
    }  # fmt: skip


@pytest.mark.parametrize(
    "checkpoint",
    [
        "../x",
        "checkpoints/a1/../00000100",
        "/checkpoints/a1/00000100",
        "checkpoints/a0/00000100",
        "checkpoints/a1/00000100\n",
        "100",
    ],
)
def test_a_checkpoint_is_named_as_the_list_has_it(checkpoint):
    told = problems(PUBLISH | {"checkpoint": checkpoint})
    assert set(told) == {"checkpoint"}
    assert "checkpoints/a1/00000100" in told["checkpoint"]


def test_what_it_must_say_and_may_not():
    assert set(problems({"kind": "publish"})) == {"job", "register_as"}
    assert set(problems(PUBLISH | {"dataset": {"uri": "/d"}})) == {"dataset"}


@pytest.mark.parametrize("ending", ["-mae", "-timm"])
def test_a_name_may_not_end_as_the_repository_of_a_format_does(ending):
    told = problems(PUBLISH | {"register_as": f"digits{ending}"})["register_as"]
    assert "must not end in -mae or -timm or -onnx or -torch_export" in told
    assert parse_spec(PUBLISH | {"register_as": f"digits{ending}s"})


@pytest.mark.parametrize("ending", ["-onnx", "-torch_export"])
def test_stored_specs_keep_names_with_endings_that_were_free_before(ending):
    assert parse_spec(PUBLISH | {"register_as": f"digits{ending}"}).register_as == f"digits{ending}"


def test_kinds_are_told_apart():
    assert isinstance(parse_spec(BASE), PretrainSpec)
    assert (
        "must be one of: embed, evaluate, import, inspect, pretrain, publish"
        in problems(BASE | {"kind": "pack"})["kind"]
    )
    with pytest.raises(SpecError, match="kind: must be pretrain here"):
        parse_pretrain(PUBLISH)


def test_an_attempt_s_request_crosses_as_json_with_either_kind():
    told = {"job_id": "j", "attempt": 1, "run_id": "r", "tracking_uri": "http://m", "artifact_uri": "/a"}
    source = Source(job_id="job-a", run_id="s", artifact_uri="/b", since_attempt=2)
    for request in (
        AttemptRequest(**told, spec=parse_spec(BASE)),
        AttemptRequest(**told, spec=parse_spec(PUBLISH), source=source),
    ):
        assert AttemptRequest.model_validate_json(request.model_dump_json()) == request
    with pytest.raises(ValidationError, match="source: is required for this job of kind publish"):
        AttemptRequest(**told, spec=parse_spec(PUBLISH))
    with pytest.raises(ValidationError, match="source: this job of kind pretrain has none"):
        AttemptRequest(**told, spec=parse_spec(BASE), source=source)
