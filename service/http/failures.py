"""Limits on requests without a valid token, by client address. Requests with a valid token never meet them."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ADDRESSES: Final = 10_000
"""Addresses that a process remembers. Beyond that it forgets those that have been quiet for longest."""

LONGEST: Final = 64
"""Characters that are kept of an address which is none: a proxy that is trusted can pass on any text."""


@dataclass
class _Bucket:
    """What one address may still do."""

    left: float
    at: float


class Buckets:
    """A token bucket for each key, in bounded memory."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic, largest: int = ADDRESSES) -> None:
        """``per_minute`` is both the size of a bucket and what flows into it in a minute."""
        self._per_minute, self._clock, self._largest = per_minute, clock, largest
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> float:
        """Take one from a key's bucket. Returns 0, or the seconds until there is one again if it was empty."""
        with self._lock:
            now, rate = self._clock(), self._per_minute / 60
            bucket = self._buckets.pop(key, None) or _Bucket(self._per_minute, now)
            bucket.left, bucket.at = min(self._per_minute, bucket.left + (now - bucket.at) * rate), now
            self._buckets[key] = bucket
            if len(self._buckets) > self._largest:
                self._buckets.popitem(last=False)
            if bucket.left >= 1:
                bucket.left -= 1
                return 0.0
            return (1 - bucket.left) / rate


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address, which one host owns whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:LONGEST]
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    # A socket for both versions shows IPv4 clients as `::ffff:192.0.2.1`, which all share one /64 network.
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
