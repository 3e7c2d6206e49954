"""The order of samples and each sample's random numbers, as pure functions of (seed, epoch, sample).

There is no generator whose state would have to be saved: any worker gets the same values for the same sample at any
time. The hash mixes its inputs with the finaliser of SplitMix64 (Steele, Lea, Flood 2014), over whole arrays at once.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# One random stream for each use, so that no two draws for a sample are correlated.
ORDER: Final = 1
CROP_AREA: Final = 2
CROP_RATIO: Final = 3
CROP_LEFT: Final = 4
CROP_TOP: Final = 5
FLIP: Final = 6
MASK: Final = 7
SPLIT: Final = 8
CORRUPTION: Final = 9
SUBSET: Final = 10
VALIDATION: Final = 11
DROP_PATH: Final = 12
OPERATION: Final = 13
OPERATION_APPLIED: Final = 14
OPERATION_SIGN: Final = 15
STRENGTH_RADIUS: Final = 16
STRENGTH_ANGLE: Final = 17
MIX_KIND: Final = 18
MIX_SHARE: Final = 19
MIX_TOP: Final = 20
MIX_LEFT: Final = 21
ERASED: Final = 22
ERASED_AREA: Final = 23
ERASED_RATIO: Final = 24
ERASED_TOP: Final = 25
ERASED_LEFT: Final = 26
ERASED_NOISE: Final = 27

_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD: Final = (1 << 64) - 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, in place: every input bit affects every output bit."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def hash64(seed: int, epoch: int, samples: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    """64 random bits for each sample id, in the shape of ``samples``."""
    key = 0
    for part in (seed, epoch, stream):
        key = int(_mix(np.array([(key + part + 1) * _GOLDEN & _WORD], dtype=np.uint64))[0])
    return _mix((samples.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key))


def uniform(seed: int, epoch: int, samples: NDArray[np.int64], stream: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each sample id."""
    return (hash64(seed, epoch, samples, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def several(samples: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Ids (B, count) by which each sample draws several numbers of one stream.

    Sample ids stay below 2**48, so no two of these ids are the same.
    """
    return samples[:, None] + (np.arange(count, dtype=np.int64) << 48)[None, :]


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order (n,) in which an epoch visits samples 0..n-1."""
    return np.argsort(hash64(seed, epoch, np.arange(n), ORDER), kind="stable")


def batch_samples(
    order: NDArray[np.int64], step: int, global_batch: int, rank: int = 0, world: int = 1, together: int = 1
) -> NDArray[np.int64]:
    """A rank's sample ids (B,) in step ``step`` of an epoch with the given order.

    The ranks divide each global batch into consecutive shares, so it is the same for any number of workers. Samples
    left over at the end of an epoch are dropped.
    """
    first, last = share_bounds(global_batch, rank, world, together)
    return order[step * global_batch + first : step * global_batch + last]


def share_bounds(global_batch: int, rank: int, world: int, together: int = 1) -> tuple[int, int]:
    """The first sample of a rank's share of a global batch, and the one after its last.

    Shares are equal, or differ by as little as ``together`` consecutive samples that stay on one rank let them.
    """
    groups = -(-global_batch // together)
    first, last = (groups * number // world * together for number in (rank, rank + 1))
    return first, min(last, global_batch)


def mask_orders(seed: int, epoch: int, samples: NDArray[np.int64], patches: int) -> NDArray[np.int64]:
    """A random permutation (B, L) of the patches for each sample, visible patches first."""
    keys = hash64(seed, epoch, samples, MASK)
    noise = _mix(keys[:, None] + np.arange(1, patches + 1, dtype=np.uint64)[None, :] * np.uint64(_GOLDEN))
    return np.argsort(noise, axis=1)
