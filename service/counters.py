"""Prometheus counters and timers of this process. Labels contain no user-supplied text."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

# Otherwise each counter has a second series with the process's start time.
disable_created_metrics()  # type: ignore[no-untyped-call]

NONE: Final = "none"
"""Label value for a missing reason: Prometheus treats an empty label as absent."""

TRANSITIONS: Final = Counter(
    "rcmae_job_transitions",
    "State transitions of jobs that this process wrote.",
    ["from", "to", "reason"],
    registry=None,
)
ATTEMPTS: Final = Counter(
    "rcmae_attempts_ended", "Attempts whose end this process recorded.", ["state", "reason"], registry=None
)
GPU_SECONDS: Final = Counter("rcmae_gpu_seconds", "GPU-seconds used by attempts that have ended.", registry=None)
ROUND_SECONDS: Final = Histogram(
    "rcmae_reconcile_round_seconds",
    "Duration of a round of the control loop, failed rounds included.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=None,
)
REQUEST_SECONDS: Final = Histogram(
    "rcmae_api_request_seconds",
    "Time from a request to the start of its response; the body of streams and downloads is not included.",
    ["method", "route", "status"],
    buckets=(0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=None,
)
REQUESTS: Final = Gauge("rcmae_api_requests_in_progress", "Requests in progress, open streams included.", registry=None)
STREAMS: Final = Gauge("rcmae_open_streams", "Clients that follow a job live.", registry=None)

OURS: Final = (TRANSITIONS, ATTEMPTS, GPU_SECONDS, ROUND_SECONDS, REQUEST_SECONDS, REQUESTS, STREAMS)


def registry_of(*collectors: Collector) -> CollectorRegistry:
    """A registry of this process's counters, its use of the machine, and what the collectors yield."""
    registry = CollectorRegistry()
    for collector in (*OURS, *collectors):
        registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type: Prometheus' text format or OpenMetrics, as the `Accept` header asks."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
