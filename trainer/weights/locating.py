"""Where weights from elsewhere lie, and which of a source's networks is meant."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trainer.data.sources import check_below_roots, real_roots
from trainer.errors import SpecRefused
from trainer.spec.dataset import Located, misplaced
from trainer.spec.export import Network
from trainer.storage import Store, storage_errors
from trainer.weights.foreign import ForeignWeights


def open_weights(source: Located, field: str, roots: tuple[str, ...] | None) -> tuple[Store, str]:
    """The folder that holds a source, and the source's name in it. ``field`` is the spec's section that names it.

    Raises `SpecRefused` if it is not there or outside the roots, `DataError` for a link that leads out of them.
    """
    uri = source.uri
    problem = misplaced(source, field, roots)
    if problem:
        raise SpecRefused(str(problem))
    parent, _, name = uri.rpartition("/")
    remote = uri.startswith("s3://")
    if remote and parent == "s3:/":
        parent, name = uri, ""  # a whole bucket
    store = Store(parent if remote or parent != "file://" else "file:///")
    if store.is_local:
        _check_links(Path(store.path(name)), roots, field)
    if not (store.names(name) or store.exists(name)):
        where = f" below {', '.join(roots)}" if roots else ""
        raise SpecRefused(
            f"{field}.uri: {uri} does not exist where the job runs. Its worker reads the weights, and sees neither "
            f"your own machine nor the service's: copy them to S3, or to a folder that every worker has{where}"
        )
    return store, name


def _check_links(path: Path, roots: tuple[str, ...] | None, field: str) -> None:
    """Raise `DataError` if the source or a file in its folder lies outside the roots once links are followed, and
    `StorageError` if the folder cannot be listed.
    """
    real = real_roots(roots)
    check_below_roots(path, real, f"{field}.uri")
    with storage_errors(str(path)):
        files = list(path.iterdir()) if path.is_dir() else []
    for file in files:
        check_below_roots(file, real, f"{field}.uri")


def chosen_network(
    weights: ForeignWeights, wanted: Network | None, field: str
) -> tuple[Network | None, dict[str, Tensor]]:
    """The network that is meant, by its name if the source has names for its networks; raises `SpecRefused`."""
    if not weights.networks:
        if wanted:
            raise SpecRefused(
                f"{field}: the source has one network, and does not say that it is the {wanted}: leave it out"
            )
        return None, weights.state
    network = wanted or ("teacher" if "teacher" in weights.networks else "student")
    if network not in weights.networks:
        raise SpecRefused(f"{field}: the source has no {network}: it has {', '.join(weights.networks)}")
    return network, weights.networks[network]
