"""A picture of a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer.evaluation.canvas import (
    BACKGROUND,
    GAP,
    INK,
    LINE,
    PALE,
    SHARES,
    class_label,
    coloured,
    cut,
    draw_scale,
    font,
    png,
    sheet,
    text_width,
    write,
    write_upwards,
)

NUMBERED: Final = 20
"""Up to so many classes each cell has its number of images."""
NAMED: Final = 40
"""Up to so many classes each row and column has its class's name; above that the numbers of some."""
CELLS: Final = 1000
"""More classes than these are shown several to a cell."""
_NAME_WIDTH: Final = 150
_NUMBERED_CELL, _NAMED_CELL, _MATRIX = 36, 18, 720
_LISTED: Final = 10
_HEADER: Final = 3 * LINE + 2 * GAP


def confusion_picture(confusion: NDArray[np.int64], classes: Sequence[str]) -> bytes:
    """A PNG of a confusion matrix (C, C) of numbers of images, whose rows are true classes and columns predicted ones.

    A cell's colour is its share of its row; above `NAMED` classes, whose confusions are spread thin, the share's square
    root. Above `NUMBERED` classes the most frequent confusions stand below the matrix.
    Raises `ValueError` if the matrix does not have a row and a column for each class.
    """
    if not classes or confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"the confusion matrix has the shape {confusion.shape}, for {len(classes)} classes")
    counts, together = _merged(confusion)
    cell = _cell(counts)
    named = len(classes) <= NAMED
    labels = [cut(class_label(classes, index), _NAME_WIDTH) for index in range(len(classes))] if named else []
    margin = max(map(text_width, labels), default=text_width(str(len(classes)))) + GAP
    left, top, side = GAP + margin, _HEADER + margin, cell * len(counts)
    below = _confusions(confusion, classes) if len(classes) > NUMBERED else []
    width = max(left + side + GAP, 2 * GAP + max(map(text_width, [*below, *_legend(counts, together)])), 2 * GAP + 400)
    picture, pen = sheet(width, top + side + GAP + LINE * len(below))
    _write_header(picture, counts, together)
    picture.paste(Image.fromarray(_cells(counts, cell)), (left, top))
    pen.rectangle((left - 1, top - 1, left + side, top + side), outline=INK)
    _write_classes(picture, (left, top), cell, labels or _some_numbers(len(counts), together, cell))
    if len(classes) <= NUMBERED:
        _write_counts(pen, (left, top), cell, counts)
    for line, text in enumerate(below):
        write(pen, (GAP, top + side + GAP + LINE * line), text)
    return png(picture)


def _merged(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The matrix with several neighbouring classes to a cell if there are very many, and how many these are."""
    together = -(-len(confusion) // CELLS)
    firsts = np.arange(0, len(confusion), together)
    return np.add.reduceat(np.add.reduceat(confusion, firsts, axis=0), firsts, axis=1), together


def _cell(counts: NDArray[np.int64]) -> int:
    """Side of a cell in pixels."""
    if len(counts) <= NUMBERED:
        return max(_NUMBERED_CELL, text_width(str(counts.max())) + GAP)
    return _NAMED_CELL if len(counts) <= NAMED else max(1, _MATRIX // len(counts))


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _cells(counts: NDArray[np.int64], cell: int) -> NDArray[np.uint8]:
    shares = _shares(counts)
    colours = coloured(shares if len(counts) <= NAMED else np.sqrt(shares), SHARES)
    colours[counts.sum(axis=1) == 0] = PALE
    return colours.repeat(cell, axis=0).repeat(cell, axis=1)


def _legend(counts: NDArray[np.int64], together: int) -> list[str]:
    rows = "Rows: true classes. Columns: predicted classes."
    if together > 1:
        rows += f" Each cell is {together} classes."
    share = "share of the row's images"
    colour = f"Colour: {share}." if len(counts) <= NAMED else f"Colour: square root of the {share}."
    if not counts.sum(axis=1).all():
        colour += " Grey: no test image."
    if len(counts) <= NUMBERED:
        colour += " Numbers: images."
    return [rows, colour]


def _write_header(picture: Image.Image, counts: NDArray[np.int64], together: int) -> None:
    write(ImageDraw.Draw(picture), (GAP, GAP), "\n".join(_legend(counts, together)))
    draw_scale(picture, (GAP, GAP + 2 * LINE + 4), SHARES, ("0", "1"))


def _some_numbers(cells: int, together: int, cell: int) -> list[str]:
    """A class's number at every so many cells, with room between them; from 0 on, as labels are."""
    step = next(step for step in (5, 10, 20, 50, 100, 200) if step * cell >= 2 * LINE)
    return [str(index * together) if index % step == 0 else "" for index in range(cells)]


def _write_classes(picture: Image.Image, corner: tuple[int, int], cell: int, labels: Sequence[str]) -> None:
    pen, (left, top) = ImageDraw.Draw(picture), corner
    for index, label in enumerate(labels):
        if label:
            middle = index * cell + cell // 2 - LINE // 2
            write(pen, (left - 4 - text_width(label), top + middle), label)
            write_upwards(picture, (left + middle, top - 4), label)


def _write_counts(pen: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, counts: NDArray[np.int64]) -> None:
    shares = _shares(counts)
    for (row, column), count in np.ndenumerate(counts):
        place = (corner[0] + column * cell + cell // 2, corner[1] + row * cell + cell // 2)
        dark = shares[row, column] > 0.45
        pen.text(place, str(count), fill=BACKGROUND if dark else INK, font=font(), anchor="mm")


def _confusions(confusion: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """The most frequent confusions, a line each."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    largest = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    lines = ["Most frequent confusions, true class > predicted class:"]
    for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True):
        if wrong[row, column]:
            pair = [cut(class_label(classes, int(index)), _NAME_WIDTH) for index in (row, column)]
            share = wrong[row, column] / confusion[row].sum()
            lines.append(f"{pair[0]} > {pair[1]}: {wrong[row, column]} images, {share:.0%} of the class")
    return lines if len(lines) > 1 else []
