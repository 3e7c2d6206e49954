"""Examples for the API's documentation: request bodies that can be sent as they are, parameters and responses."""

from __future__ import annotations

from typing import Any, Final

JOB_ID: Final = "job-e2k4y0h5c7m9xq"
RUN_ID: Final = "5b1c3f0a9d7e4c7f8f2e6a1b0c9d8e7f"
SEARCH_ID: Final = "job-e2k5a8m1r6t3vw"
TOKEN_ID: Final = "tok-5f0c8a1e9b7d24"  # noqa: S105 - an id is not a secret
WEBHOOK_ID: Final = "hook-3b9c1d5e7f2a46"
DELIVERY_ID: Final = "msg-8c2f4e6a1b3d5f7a9c0e2d4b"
TIME: Final = "2026-03-01T09:30:00Z"

DIGITS: Final[dict[str, Any]] = {
    "kind": "pretrain",
    "name": "walk",
    "dataset": {"uri": "builtin://digits"},
    "model": {
        "img_size": 32,
        "patch_size": 8,
        "in_chans": 1,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "decoder_embed_dim": 32,
        "decoder_depth": 1,
        "decoder_num_heads": 4,
    },
    "optimization": {"epochs": 20, "global_batch_size": 160, "base_lr": 3e-3},
    "augmentation": {"hflip": False},
    "resources": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1},
    "register_as": "walk",
    "labels": {"team": "vision"},
}
PAPER: Final[dict[str, Any]] = {
    "kind": "pretrain",
    "name": "imagenet-base",
    "dataset": {"uri": "s3://datasets/imagenet/train"},
    "model": {"preset": "vit_base_patch16_224"},
    "resources": {"workers": 8},
    "checkpoint": {"every_epochs": 20, "every_minutes": 30, "keep": 3},
    "register_as": "imagenet-base",
    "labels": {"team": "vision"},
    "priority": 10,
}
SEARCH: Final[dict[str, Any]] = {
    "kind": "search",
    "name": "tune-teacher",
    "base": {**DIGITS, "evaluation": {"every_epochs": 5}},
    "space": {
        "method.teacher.momentum": {"type": "float", "low": 0.9, "high": 0.9999},
        "optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    },
    "objective": {"metric": "eval/linear_top1", "mode": "max"},
    "scheduler": {"name": "asha", "grace_epochs": 5},
    "budget": {"trials": 32, "concurrency": 2, "max_failed": 8},
}
IMPORT: Final[dict[str, Any]] = {
    "kind": "import",
    "source": {"uri": "s3://models/vit-mae-base"},
    "register_as": "vit-mae-base",
    "origin": {
        "name": "facebook/vit-mae-base",
        "url": "https://huggingface.co/facebook/vit-mae-base",
        "trained_on": "ImageNet-1k",
        "paper": "https://arxiv.org/abs/2111.06377",
    },
    "license": "apache-2.0",
}
SPECS: Final = {
    "digits": {"summary": "Takes minutes on two CPU cores, with built-in images", "value": DIGITS},
    "paper": {
        "summary": "The paper's ViT-Base run on eight GPUs; omitted fields have the paper's values",
        "value": PAPER,
    },
    "search": {"summary": "A search over the teacher's momentum and the learning rate", "value": SEARCH},
    "import": {"summary": "A backbone that others have trained, as a version of one here", "value": IMPORT},
}

BODIES: Final[dict[str, dict[str, Any]]] = {
    "submit_job": SPECS,
    "plan_job": SPECS,
    "change_job": {
        "priority": {"summary": "Start it before other jobs", "value": {"priority": 5}},
        "labels": {
            "summary": "Replace all labels, and set a note",
            "value": {"labels": {"team": "vision", "paper": "rc-mae"}, "notes": "The second run of March."},
        },
    },
    "change_search": {
        "more": {"summary": "Ten more trials, four at a time", "value": {"trials": 42, "concurrency": 4}},
        "hours": {"summary": "Remove the time limit", "value": {"max_hours": None}},
    },
    "add_trials": {
        "whole": {
            "summary": "The paper's values",
            "value": {"points": [{"method.teacher.momentum": 0.996, "optimization.base_lr": 1.5e-4}]},
        },
        "part": {
            "summary": "One value, the others chosen by the algorithm, in addition to the budget",
            "value": {"points": [{"method.teacher.momentum": 0.99}], "beyond_budget": True},
        },
    },
    "promote_trial": {
        "as_it_is": {"summary": "The trial's spec, registered as the base spec says", "value": {}},
        "longer": {
            "summary": "More epochs and workers, registered under another name",
            "value": {
                "overrides": {"optimization.epochs": 400, "resources.workers": 4},
                "register_as": "walk-best",
            },
        },
    },
    "create_token": {
        "own": {
            "summary": "For a program of your own, valid until it is revoked",
            "value": {"role": "submitter", "name": "nightly runs"},
        },
        "others": {
            "summary": "For somebody else, for three months (admins only)",
            "value": {"owner": "alice", "role": "submitter", "expires_in_days": 90},
        },
    },
    "rotate_token": {
        "at_once": {"summary": "The old token ends at once", "value": {}},
        "grace": {"summary": "The old token stays valid for an hour", "value": {"grace_s": 3600}},
    },
    "create_webhook": {
        "all": {
            "summary": "Everything that happens to backbones",
            "value": {"url": "https://ci.example.org/hooks/rcmae", "description": "starts the evaluation"},
        },
        "some": {
            "summary": "New versions of one backbone",
            "value": {
                "url": "https://ci.example.org/hooks/rcmae",
                "events": ["version.registered"],
                "backbones": ["imagenet-base"],
            },
        },
    },
    "change_webhook": {
        "enable": {"summary": "Enable it again", "value": {"enabled": True}},
        "events": {
            "summary": "Other events, of all backbones",
            "value": {"events": ["alias.moved"], "backbones": None},
        },
    },
    "change_backbone": {
        "describe": {"summary": "Say what it is", "value": {"description": "Backbones for the shelf cameras."}},
        "labels": {"summary": "Replace its labels", "value": {"labels": {"team": "vision"}}},
        "owner": {"summary": "Give it to somebody else", "value": {"owner": "admin"}},
        "private": {"summary": "Let its owners alone see it", "value": {"visibility": "owners"}},
    },
    "change_backbone_version": {
        "describe": {
            "summary": "Say what it is, and label it",
            "value": {"description": "Trained on the second delivery.", "labels": {"delivery": "2"}},
        }
    },
    "set_backbone_alias": {
        "champion": {"summary": "The version with this number", "value": {"version": 1}},
        "approval": {"summary": "With a reason", "value": {"version": 1, "reason": "better on the shelf set"}},
    },
    "set_champion_rule": {
        "no_worse": {
            "summary": "It must not be worse than the champion",
            "value": {"must_not_worsen": [{"metric": "eval/linear_top1", "tolerance": 0.005}]},
        },
        "four_eyes": {
            "summary": "Somebody else has to approve it, with a reason",
            "value": {"not_by_owner": True, "reason_required": True},
        },
    },
    "set_backbone_retention": {
        "quarter": {
            "summary": "Keep the newest five, and what somebody has used within 90 days",
            "value": {"expire_unused_days": 90, "keep_newest": 5},
        }
    },
    "resume_job": {
        "as_before": {"summary": "With the same resources", "value": {}},
        "fewer_workers": {"summary": "With other resources", "value": {"resources": {"workers": 1}}},
    },
    "retry_job": {
        "go_on": {"summary": "From the last checkpoint", "value": {}},
        "from_scratch": {"summary": "From scratch, without its checkpoints", "value": {"from_scratch": True}},
    },
}
"""Request bodies by operation."""

PARAMETERS: Final[dict[str, Any]] = {
    "job_id": JOB_ID,
    "name": "imagenet-base",
    "version": 1,
    "alias": "champion",
    "job": JOB_ID,
    "dataset": "builtin://digits",
    "method": "rc_mae",
    "network": "teacher",
    "format": "hf",
    "sort": "-eval/linear_top1",
    "org": "rcmae",
    "repo": "imagenet-base",
    "revision": "main",
    "path": "hf/model.safetensors",
    "Idempotency-Key": "nightly-2026-03-01",
    "state": ["queued", "running"],
    "kind": "pretrain",
    "owner": "alice",
    "label": ["team:vision"],
    "search": "imagenet vision",
    "filter": ["eval/linear_top1 >= 0.5"],
    "name_contains": "imagenet",
    "created_after": TIME,
    "limit": 50,
    "attempt": 1,
    "source": "rank-0",
    "key": ["train/loss"],
    "Range": "bytes=0-1023",
    "token_id": TOKEN_ID,
    "webhook_id": WEBHOOK_ID,
    "delivery_id": DELIVERY_ID,
    "search_id": SEARCH_ID,
    "number": 7,
}
"""Parameters by name; `OPERATION_PARAMETERS` has those that differ for one operation."""

OPERATION_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "compare_metrics": {"job": [JOB_ID]},
    "get_backbone_version": {"version": "latest"},
    "download_backbone_file": {"version": "1"},
    "check_backbone_file": {"version": "1"},
    "download_backbone_archive": {"version": "1"},
    "check_backbone_archive": {"version": "1"},
    "get_backbone_signature": {"version": "1"},
    "list_backbone_users": {"version": "1"},
    "get_backbone_evaluations": {"version": "1"},
    "compare_backbones": {"of": "imagenet-base:1", "with": "imagenet-base@champion"},
    "download_backbone_signature": {"version": "1"},
    "check_backbone_signature": {"version": "1"},
    "hub_download": {"path": "model.safetensors"},
    "hub_check": {"path": "model.safetensors"},
    "hub_tree_below": {"path": "card"},
    "list_evaluations": {"backbone": "imagenet-base:1", "test": "s3://datasets/cifar10/test", "protocol": ["linear"]},
    "get_evaluation_table": {"backbone": "imagenet-base", "test": "s3://datasets/cifar10/test", "protocol": ["linear"]},
    **{key: {"name": "reconstruction_00000480.png"} for key in ("get_job_image", "get_trial_image")},
    **{key: {"path": "embeddings/part-00000.parquet"} for key in ("download_job_file", "check_job_file")},
    "list_trials": {"state": ["complete", "pruned"], "sort": "-value"},
    "get_search_plot": {"name": "slice", "param": ["optimization.base_lr"]},
}

JOB: Final[dict[str, Any]] = {
    "id": JOB_ID,
    "kind": "pretrain",
    "name": "walk",
    "state": "running",
    "reason": None,
    "message": "Trains on 2 workers.",
    "owner": "alice",
    "priority": 0,
    "labels": {"team": "vision"},
    "notes": "",
    "progress": {
        "epoch": 3.5,
        "epochs": 20,
        "step": 35,
        "steps": 200,
        "samples": 5600,
        "images_per_s": 410.5,
        "data_wait_fraction": 0.04,
        "loss": 0.8123,
        "eta_s": 64.4,
        "gpu_hours": 0.0,
        "labels": "10 classes from builtin, 1797 of 1797 images labelled",
        "warnings": [],
    },
    "promoted_from": None,
    "follows": None,
    "followed_by": [],
    "created_at": TIME,
    "started_at": "2026-03-01T09:30:21Z",
    "ended_at": None,
    "attempts": 1,
    "run_id": RUN_ID,
    "spec": DIGITS,
    "result": None,
}

TRIAL: Final[dict[str, Any]] = {
    "number": 7,
    "state": "complete",
    "reason": None,
    "message": "",
    "values": [0.931],
    "params": {"method.teacher.momentum": 0.9931, "optimization.base_lr": 0.00042},
    "epoch": 20.0,
    "progress": None,
    "heartbeat_at": None,
    "best": True,
    "repeat_of": None,
    "retry_of": None,
    "copy_of": None,
    "started_at": "2026-03-01T09:34:02Z",
    "ended_at": "2026-03-01T09:35:10Z",
    "duration_s": 68.2,
    "run_id": "0c9d8e7f5b1c3f0a9d7e4c7f8f2e6a1b",
    "promoted": [JOB_ID],
}

ANSWERS: Final[dict[str, Any]] = {
    "Job": JOB,
    "Trial": TRIAL,
    "Search": {
        "id": SEARCH_ID,
        "name": "tune-teacher",
        "state": "running",
        "reason": None,
        "message": "Attempt 1 is searching.",
        "owner": "alice",
        "objectives": [{"metric": "eval/linear_top1", "mode": "max"}],
        "algorithm": "tpe",
        "scheduler": "asha",
        "space": SEARCH["space"],
        "budget": {"trials": 32, "concurrency": 2, "concurrency_wanted": 2, "max_failed": 8, "max_hours": None},
        "trials": {"waiting": 0, "running": 2, "complete": 8, "pruned": 5, "failed": 1},
        "draining": False,
        "best": [TRIAL],
        "repeats": [],
        "grid_size": None,
        "elapsed_s": 480.0,
        "eta_s": 617.1,
        "gpu_hours": 0.0,
        "promoted": {"7": [JOB_ID]},
        "created_at": TIME,
        "started_at": "2026-03-01T09:30:21Z",
        "ended_at": None,
    },
    "Event": {
        "id": 12,
        "time": TIME,
        "state": "queued",
        "reason": "insufficient_resources",
        "message": "Waits for resources: needs 4 GPUs, 2 free, 8 in the cluster.",
        "actor": "controller",
    },
    "Log": {
        "time": 1772357421.25,
        "level": "info",
        "source": "rank-0",
        "message": "Checkpoint at step 480 stored.",
        "attempt": 1,
    },
    "Image": {
        "step": 480,
        "epoch": 40.0,
        "name": "reconstruction_00000480.png",
        "url": f"/v1/jobs/{JOB_ID}/images/reconstruction_00000480.png",
    },
    "Deletion": {
        "job_id": JOB_ID,
        "run_id": RUN_ID,
        "artifact_uri": f"s3://artifacts/{RUN_ID}/artifacts",
        "files": 41,
        "bytes": 3_481_220_016,
        "backbones": [{"name": "walk", "version": 1}],
    },
    "Backbone": {
        "name": "imagenet-base",
        "type": "backbone",
        "owner": "alice",
        "description": "ViT-Base for photographs.",
        "labels": {"team": "vision"},
        "visibility": "all",
        "readers": [],
        "latest_version": 2,
        "main_version": 1,
        "versions": [1, 2],
        "gone": [],
        "aliases": {"champion": 1},
        "metrics": {"eval/linear_top1": 0.671, "eval/reconstruction_ratio": 0.31},
        "formats": ["timm", "hf", "hf-mae"],
        "downloads": 42,
        "last_used_on": "2026-02-27",
        "bytes": 1_846_219_004,
        "updated_at": TIME,
    },
    "Problem": {
        "type": "about:blank",
        "title": "Unprocessable Entity",
        "status": 422,
        "code": "spec_invalid",
        "detail": "optimization.epocs: unknown field; did you mean 'epochs'? (given: 20)",
        "problems": [
            {
                "field": "optimization.epocs",
                "pointer": "/optimization/epocs",
                "value": 20,
                "message": "unknown field; did you mean 'epochs'?",
            }
        ],
        "request_id": "0d9f1c7e5b3a4e2f8c6d7a9b0e1f2a3b",
    },
}
"""Responses by the name of their schema."""
