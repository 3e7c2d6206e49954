"""Studies of thousands of trials, written in bulk: one by one they take minutes."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from optuna.distributions import (
    distribution_to_json,
)
from optuna.storages._rdb import models
from sqlalchemy import create_engine, func, insert, select

from service.adapters.studies import Studies
from trainer.protocol import names
from trainer.search.study import distribution
from trainer.spec import metric_keys
from trainer.spec.search import SearchSpec

BEGIN = datetime(2025, 1, 1, 12, tzinfo=UTC)
EPOCHS = 20
"""Of a trial; it is evaluated after each."""
SPEC = SearchSpec.parse(
    {
        "kind": "search",
        "name": "many",
        "base": {
            "dataset": {"uri": "s3://datasets/cifar10"},
            "model": {"preset": "vit_base_patch16_224"},
            "optimization": {"epochs": EPOCHS},
            "evaluation": {"every_epochs": 1},
        },
        "space": {
            "method.teacher.momentum": {"type": "float", "low": 0.9, "high": 0.9999},
            "method.teacher.schedule": {"type": "categorical", "choices": ["cosine", "constant"]},
            "method.consistency_weight": {"type": "float", "low": 0.0, "high": 4.0},
            "method.mask_ratio": {"type": "float", "low": 0.4, "high": 0.9},
            "optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
            "optimization.weight_decay": {"type": "float", "low": 1e-3, "high": 0.3, "log": True},
            "optimization.warmup_epochs": {"type": "int", "low": 0, "high": 10},
            "augmentation.hflip": {"type": "categorical", "choices": [True, False]},
        },
        "budget": {"trials": 10_000},
    }
)


def write_trials(url: str, job_id: str, count: int, spec: SearchSpec = SPEC) -> None:
    """Make a search's study at a database's URL, with so many ended trials.

    Of one objective three in five were pruned; of several all are complete. The first trial is number 0.
    """
    studies, chance = Studies(url), random.Random(0)
    studies.make(job_id, spec)
    study = studies.study(job_id)
    assert study is not None
    rows: dict[type[models.BaseModel], list[dict[str, Any]]] = {
        models.TrialModel: [],
        models.TrialParamModel: [],
        models.TrialUserAttributeModel: [],
        models.TrialValueModel: [],
        models.TrialIntermediateValueModel: [],
    }
    space = {path: distribution(parameter) for path, parameter in spec.space.items()}
    written = {path: distribution_to_json(each) for path, each in space.items()}
    engine = create_engine(url)
    with engine.begin() as connection:
        first = (connection.scalar(select(func.max(models.TrialModel.trial_id))) or 0) + 1
        for number in range(count):
            trial = {"trial_id": first + number}
            pruned = len(spec.objectives) == 1 and chance.random() < 0.6
            epochs, height = chance.randint(1, EPOCHS - 1) if pruned else EPOCHS, chance.random()
            begin = (BEGIN + timedelta(minutes=number)).replace(tzinfo=None)
            rows[models.TrialModel].append(
                trial
                | {"number": number, "study_id": study._study_id, "state": "PRUNED" if pruned else "COMPLETE"}
                | {"datetime_start": begin, "datetime_complete": begin + timedelta(seconds=30 * epochs)}
            )
            point = spec.stored(spec.draw(chance))
            rows[models.TrialParamModel] += [
                trial
                | {"param_name": path, "param_value": space[path].to_internal_repr(value)}
                | {"distribution_json": written[path]}
                for path, value in point.items()
            ]
            curve = [height * (1 - 0.8**epoch) for epoch in range(1, epochs + 1)]
            attributes = {
                names.TRIAL_RUN: f"{number:032x}",
                names.TRIAL_FOLDER: f"s3://artifacts/{number:032x}/artifacts",
                names.TRIAL_EPOCH: epochs,
                names.TRIAL_METRICS: {metric_keys.LINEAR_TOP1: curve[-1], metric_keys.LOSS: 1 - curve[-1]},
                names.TRIAL_ATTEMPTS: [1],
            }
            rows[models.TrialUserAttributeModel] += [
                trial | {"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()
            ]
            if not pruned:
                rows[models.TrialValueModel] += [
                    trial | {"objective": place, "value": curve[-1] if place == 0 else chance.random() * 1000}
                    | {"value_type": "FINITE"}
                    for place in range(len(spec.objectives))
                ]  # fmt: skip
            rows[models.TrialIntermediateValueModel] += [
                trial | {"step": step, "intermediate_value": value, "intermediate_value_type": "FINITE"}
                for step, value in enumerate(curve, 1)
            ]
        for table, of_table in rows.items():
            if of_table:
                connection.execute(insert(table.__table__), of_table)
    engine.dispose()
    studies.close()
