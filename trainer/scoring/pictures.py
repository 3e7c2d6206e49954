"""Pictures of an evaluation: what the network finds alike, what its features and its attention show, which classes are
taken for which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from trainer.data.images import Images
from trainer.errors import StorageError
from trainer.evaluation.confusion_picture import confusion_picture
from trainer.evaluation.features import evaluating
from trainer.evaluation.knn import knn_scores, nearest
from trainer.evaluation.scores import Predictions
from trainer.evaluation.sheets import (
    attention_picture,
    corruption_sheet,
    neighbours_picture,
    patch_features_picture,
)
from trainer.models.encoder import Encoder
from trainer.models.pixels import normalised
from trainer.protocol.evaluation import EVALUATION_FOLDER, EvaluationPicture
from trainer.protocol.message import Message
from trainer.scoring.bench import Bench, NetworkFeatures
from trainer.scoring.kept import UNITS, Kept
from trainer.scoring.results import by_key, confusion_of
from trainer.scoring.trained import is_pictured, picture_of
from trainer.spec.measurements import Unit, groups, measurements, title, trainings
from trainer.storage import Store

IMAGES: Final = 6
"""Test images in a picture."""
NEIGHBOURS: Final = 6
DRAWN: Final = f"{UNITS}/pictures/drawn.json"


class Drawn(Message):
    """The pictures of the network itself that an attempt has stored."""

    attempt: int
    data: str
    """As of `UnitResult`."""
    pictures: list[EvaluationPicture] = Field(default_factory=list)


Picture = tuple[str, str, str, bytes]
"""Title, caption, file, PNG."""


def draw_pictures(features: NetworkFeatures, bench: Bench, kept: Kept, store: Store) -> list[EvaluationPicture]:
    """Store pictures of what the backbone sees, unless an earlier attempt has. Every rank calls this."""
    known = bench.ranks.collect(lambda: _drawn(store, kept) if bench.ranks.rank == 0 else None)[0]
    if known is not None:
        return known
    rows = _spread(bench.data.test.labels, IMAGES)
    # Every rank takes part in computing features, and one alone draws.
    seen = (features.train, features.test) if any(each.units for each in groups(bench.spec)) else None

    def draw() -> list[EvaluationPicture]:
        pictures = [_neighbours(*seen, bench, rows)] if seen else []
        images = _images(bench.data.test.images, bench.data.test.rows[rows], bench)
        return _stored([*pictures, *_inside(features.encoder, images, bench)], kept, store)

    return bench.ranks.collect(lambda: draw() if bench.ranks.rank == 0 else [])[0]


def _stored(pictures: list[Picture], kept: Kept, store: Store) -> list[EvaluationPicture]:
    for _, _, file, data in pictures:
        store.write(file, data)
    found = [EvaluationPicture(file=file, title=title, caption=caption) for title, caption, file, _ in pictures]
    written = Drawn(attempt=kept.attempt, data=kept.data, pictures=found)
    store.write(DRAWN, written.model_dump_json(indent=1).encode())
    return found


def _drawn(store: Store, kept: Kept) -> list[EvaluationPicture] | None:
    if not store.exists(DRAWN):
        return None
    try:
        found = Drawn.model_validate_json(store.read(DRAWN))
    except ValidationError as error:
        raise StorageError(f"{store.uri}/{DRAWN} is damaged: delete it, and retry the job: {error}") from error
    return found.pictures if found.attempt >= kept.since_attempt and found.data == kept.data else None


def _spread(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of some images of as many classes as possible: the first of each of the classes at equal distances."""
    present = np.unique(labels)
    chosen = present[np.linspace(0, len(present) - 1, min(count, len(present))).round().astype(np.int64)]
    return np.array([int(np.flatnonzero(labels == label)[0]) for label in chosen])


def _neighbours(
    of_train: dict[int, Tensor], of_test: dict[int, Tensor], bench: Bench, rows: NDArray[np.int64]
) -> Picture:
    layer = bench.layers[-1]
    train, test, data = of_train[layer], of_test[layer], bench.data
    count = min(NEIGHBOURS, len(train))
    similarities, found = nearest(train, test[rows], count, bench.device)
    votes = Predictions(knn_scores(similarities, found, data.train.labels, bench.classes, [count])[count])
    picture = neighbours_picture(
        _images(data.test.images, data.test.rows[rows], bench),
        data.test.labels[rows],
        votes.predicted,
        torch.stack([_images(data.train.images, data.train.rows[each], bench) for each in found.numpy()]),
        data.train.labels[found.numpy()],
        similarities,
        data.classes,
    )
    caption = (
        f"One test image of each of {len(rows)} classes, and the {count} training images whose features are nearest to "
        "its own in cosine similarity. What they have in common is what the features are sensitive to."
    )
    return "Nearest neighbours", caption, f"{EVALUATION_FOLDER}/neighbours.png", picture


@torch.no_grad()
def _inside(encoder: Encoder, images: Tensor, bench: Bench) -> list[Picture]:
    view, grid = bench.subject.view, bench.subject.model.grid
    pixels = normalised(images.to(bench.device), view.mean, view.std)
    with evaluating(encoder):
        tokens = encoder.encode(pixels)[:, 1:].float().cpu()
        attention = encoder.attention(pixels)[:, :, 1:].float().cpu()
    patches = (
        "The last block's patch tokens as colours: their first three principal components over these images. Patches "
        "of one colour have alike features, so objects and their parts stand out where the network tells them apart."
    )
    attended = (
        "How much the class token attends to each patch in the last block, on the mean and by head. Masked "
        "auto-encoders do not train this token to a purpose, so broad maps are normal before fine-tuning."
    )
    return [
        (
            "Patch features",
            patches,
            f"{EVALUATION_FOLDER}/patch-features.png",
            patch_features_picture(images, tokens, grid),
        ),
        ("Attention", attended, f"{EVALUATION_FOLDER}/attention.png", attention_picture(images, attention, grid)),
    ]


def _images(images: Images, rows: NDArray[np.int64], bench: Bench) -> Tensor:
    return torch.from_numpy(images.fitted(rows, bench.subject.view.size))


def draw_results(bench: Bench, kept: Kept, store: Store) -> Iterator[EvaluationPicture]:
    """Store and describe the pictures of what was measured: confusion matrices, corruptions, batches. On one rank."""
    units = measurements(bench.spec)
    for found in by_key(units).values():
        matrix = confusion_of([kept.results[unit.name] for unit in found], bench.classes)
        if matrix is not None:
            yield _confusion(store, found[0], matrix, bench.data.classes)
    if any(unit.corruption for unit in units):
        yield _corruptions(store, bench)
    for unit in trainings(bench.spec):
        if is_pictured(bench.spec, unit):
            yield EvaluationPicture(
                file=picture_of(unit),
                title=f"Batch: {title(unit.protocol)}",
                caption="The first images that the training saw, with their crops, their augmentation and the shares "
                "of their classes in the targets.",
            )


def _confusion(store: Store, unit: Unit, matrix: NDArray[np.int64], classes: Sequence[str]) -> EvaluationPicture:
    share = f"-{unit.share:g}" if unit.share else ""
    file = f"{EVALUATION_FOLDER}/confusion-{unit.protocol}{share}.png"
    store.write(file, confusion_picture(matrix, classes))
    caption = "Test images by true class (rows) and predicted class (columns), added up over the seeds."
    return EvaluationPicture(file=file, title=f"Confusion: {title(unit.protocol, unit.share)}", caption=caption)


def _corruptions(store: Store, bench: Bench) -> EvaluationPicture:
    file = f"{EVALUATION_FOLDER}/corruptions.png"
    row = bench.data.test.rows[_spread(bench.data.test.labels, 1)]
    store.write(file, corruption_sheet(_images(bench.data.test.images, row, bench)[0]))
    caption = "One test image under each corruption at each severity, as the network sees it."
    return EvaluationPicture(file=file, title="Corruptions", caption=caption)
