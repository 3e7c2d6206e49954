"""A search under Ray Tune: one attempt is a fresh `Tuner` over the search's study, the only record that is kept.

Trials that were running when an attempt ended resume in the next one, under their own numbers, from their checkpoints.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Final

from ray import tune
from ray.tune import PlacementGroupFactory, RunConfig, TuneConfig, TuneError, Tuner
from ray.tune.execution import class_cache

from trainer.attempt.commands import CommandListener
from trainer.attempt.worker import Work
from trainer.logger import logger
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest
from trainer.search.schedulers import make_scheduler
from trainer.search.searcher import StudySearch
from trainer.search.trial import run_trial, runs_in_process
from trainer.spec.search import SearchSpec
from trainer.temporary import temporary_folder
from trainer.tracking.channels import SearchChannel
from trainer.tracking.trials import TrialRuns

MOST_PENDING: Final = 16
"""Trials that may wait for resources at a time."""


def run_search(request: AttemptRequest, spec: SearchSpec, train: Work) -> Outcome:
    """One attempt of a search, whose trials' workers do ``train``; returns its outcome, which is not stored yet."""
    runs = TrialRuns(request.tracking_uri, request.run_id, request.job_id)
    channel = SearchChannel(request.tracking_uri, request.run_id, request.attempt)
    listener = CommandListener(channel, request.attempt)
    try:
        search = StudySearch(request, spec, runs, channel, listener)
        listener.start()
        with temporary_folder() as folder:
            _tune(spec, search, train, folder)
        if search.error:
            raise search.error
    finally:
        listener.stop()
    return search.outcome()


def _tune(spec: SearchSpec, search: StudySearch, train: Work, folder: Path) -> None:
    """Run trials until the search ends; ``folder`` is for Ray Tune's records, which are not kept."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(min(MOST_PENDING, spec.budget.concurrency))
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "100000000"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial may be stopped before its first evaluation
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # it would print a table for every trial
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # our own log lines say it
    # Ray Tune would propagate S3's credentials, and Ray shows propagated variables to everybody; nodes have their own.
    # RAY_ADDRESS is needed on a machine with two clusters, to find the one where a dead trial's workers are freed.
    propagated = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE = propagated | {"RAY_ADDRESS"}
    tuner = Tuner(
        tune.with_resources(partial(run_trial, work=train), _resources(spec)),
        tune_config=TuneConfig(
            search_alg=search, scheduler=make_scheduler(spec, search), num_samples=-1,
            # A process that waits for workers elsewhere can only be stopped by killing it.
            reuse_actors=runs_in_process(spec),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=RunConfig(name="search", storage_path=str(folder), verbose=0),
    )  # fmt: skip
    try:
        tuner.fit()
    except TuneError as error:  # its text is a traceback
        logger.exception("Ray Tune failed")
        raise RuntimeError(f"Ray Tune: {str(error).strip().splitlines()[-1]}") from error


def _resources(spec: SearchSpec) -> PlacementGroupFactory:
    """Resources of a trial's own process."""
    if not runs_in_process(spec):
        return PlacementGroupFactory(
            [{"memory": 1}]
        )  # one byte: Ray refuses an empty bundle, and there may be no free CPU
    resources = spec.worker_resources
    return PlacementGroupFactory([{"CPU": float(resources.cpus_per_worker), "GPU": float(resources.gpus_per_worker)}])
