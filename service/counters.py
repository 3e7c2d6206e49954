"""What this process counts and times, in Prometheus' form; no label holds what people wrote."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

# A series more for each of them, which says when the process began.
disable_created_metrics()  # type: ignore[no-untyped-call]

NONE: Final = "none"
"""A label's value where there is no reason: an empty one would be no label."""

TRANSITIONS: Final = Counter(
    "rcmae_job_transitions",
    "Changes of a job's state that this process wrote.",
    ["from", "to", "reason"],
    registry=None,
)
ATTEMPTS: Final = Counter(
    "rcmae_attempts_ended", "Attempts that ended, as this process saw it.", ["state", "reason"], registry=None
)
GPU_SECONDS: Final = Counter(
    "rcmae_gpu_seconds", "Seconds that attempts which have ended held their GPUs, times the GPUs.", registry=None
)
ROUND_SECONDS: Final = Histogram(
    "rcmae_reconcile_round_seconds",
    "Duration of a round of the controller's loop, also of one that failed.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=None,
)
REQUEST_SECONDS: Final = Histogram(
    "rcmae_api_request_seconds",
    "From a request to the head of its answer; streams and downloads go on from there.",
    ["method", "route", "status"],
    buckets=(0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=None,
)
REQUESTS: Final = Gauge(
    "rcmae_api_requests_in_progress", "Requests being answered, open streams among them.", registry=None
)
STREAMS: Final = Gauge("rcmae_open_streams", "Readers that follow a job live.", registry=None)

OURS: Final = (TRANSITIONS, ATTEMPTS, GPU_SECONDS, ROUND_SECONDS, REQUEST_SECONDS, REQUESTS, STREAMS)


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """All that a process shows: what it counts, what it takes of its machine, and what the collectors find out."""
    registry = CollectorRegistry()
    for collector in (*OURS, *collectors):
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as the header ``Accept`` wants them, Prometheus' text or OpenMetrics, and their content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
