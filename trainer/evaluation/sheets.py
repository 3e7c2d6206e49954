"""Pictures of test images beside what a network makes of them, and of the corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trainer.evaluation.canvas import (
    GAP,
    HEAT,
    INK,
    LINE,
    RIGHT,
    WRONG,
    Array,
    as_array,
    cell_size,
    checked_images,
    class_label,
    coloured,
    cut,
    draw_scale,
    png,
    rgb,
    sheet,
    text_width,
    tile,
    write,
)
from trainer.evaluation.corruptions.catalogue import NOTES, SEVERITIES, corrupted
from trainer.spec.evaluate import CORRUPTIONS

SIDE: Final = 112
"""The longer side of an image is at most this, in pixels."""
_CAPTION: Final = 2 * LINE + 2
_FRAME: Final = 3
_IMAGE_SHARE: Final = 0.35
"""How much of an image shows through a map of attention."""


def neighbours_picture(
    queries: Array,
    query_labels: Array,
    predicted: Array,
    neighbours: Array,
    neighbour_labels: Array,
    similarities: Array,
    classes: Sequence[str],
) -> bytes:
    """A PNG with a row for each test image and its nearest training images, nearest first.

    ``queries`` (n, C, H, W) and ``neighbours`` (n, k, C, H, W) uint8, ``query_labels`` and ``predicted`` (n,),
    ``neighbour_labels`` and ``similarities`` (n, k). Below each test image are its class and the predicted one, below
    each neighbour its class, whether that is the test image's, and the cosine similarity.
    """
    images, labels, votes = checked_images(queries), as_array(query_labels), as_array(predicted)
    near, near_labels, cosines = as_array(neighbours), as_array(neighbour_labels), as_array(similarities)
    count = near.shape[1]
    cell = cell_size(images.shape[2], images.shape[3], SIDE)
    wide, tall = max(cell[1], SIDE) + 2 * GAP, cell[0] + _CAPTION + 2 * GAP
    legend = (
        "Left: test images, with their class and the class that the neighbours vote for. Then the nearest training "
        "images,\nnearest first, with their class and the cosine similarity. same, right (blue): the test image's "
        "class. other, wrong (orange): another."
    )
    top = GAP + 2 * LINE + GAP
    picture, pen = sheet(max(GAP + wide * (count + 1), _width_of(legend)), top + tall * len(images))
    write(pen, (GAP, GAP), legend)
    for row, image in enumerate(images):
        true = class_label(classes, int(labels[row]))
        right = votes[row] == labels[row]
        verdict = f"{'right' if right else 'wrong'}: {class_label(classes, int(votes[row]))}"
        place = (GAP, top + row * tall)
        _framed(picture, place, image, cell, (true, verdict), bool(right))
        for column in range(count):
            same = bool(near_labels[row, column] == labels[row])
            words = f"{'same' if same else 'other'} {cosines[row, column]:.2f}"
            caption = (class_label(classes, int(near_labels[row, column])), words)
            _framed(picture, (place[0] + (column + 1) * wide, place[1]), near[row, column], cell, caption, same)
    return png(picture)


def _framed(
    picture: Image.Image,
    place: tuple[int, int],
    image: NDArray[np.uint8],
    cell: tuple[int, int],
    caption: tuple[str, str],
    right: bool,
) -> None:
    """An image in a frame whose colour says right or wrong, and two lines below it, of which the second says it too."""
    pen, (x, y), colour = ImageDraw.Draw(picture), place, RIGHT if right else WRONG
    pen.rectangle((x, y, x + cell[1] + 2 * _FRAME - 1, y + cell[0] + 2 * _FRAME - 1), fill=colour)
    picture.paste(tile(image, cell), (x + _FRAME, y + _FRAME))
    below, width = y + cell[0] + 2 * _FRAME + 1, max(cell[1], SIDE) + GAP
    write(pen, (x, below), cut(caption[0], width))
    write(pen, (x, below + LINE), cut(caption[1], width), colour)


def patch_features_picture(images: Array, tokens: Array, grid: tuple[int, int]) -> bytes:
    """A PNG with each image (n, C, H, W) uint8 beside its patch tokens (n, L, D) as colours.

    Red, green and blue are the first three principal components of all patches shown, each from its first to its last
    percentile; a component without variance is half of the full brightness. ``grid`` is (rows, columns) of the L
    patches.
    """
    pixels, features = checked_images(images), as_array(tokens).astype(np.float64)
    _check_grid("tokens", features.shape, (len(pixels), grid[0] * grid[1], features.shape[-1]), grid)
    colours, shares = _components(features)
    maps = np.rint(colours.reshape(len(pixels), *grid, 3) * 255).astype(np.uint8)
    legend = "Red, green, blue: first three principal components\nof the patch tokens of these images, with " + (
        ", ".join(f"{share:.0%}" for share in shares) + "\nof their variance. Like colours are like features."
    )
    shown = [[image, each.transpose(2, 0, 1)] for image, each in zip(pixels, maps, strict=True)]
    return _columns(shown, ["image", "patches"], legend)


def _components(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The first three principal components (n * L, 3) of features (n, L, D), in 0..1, and their shares of the variance.

    The value of greatest magnitude of each component is positive: that fixes the sign, so that rotated features give
    the same.
    """
    rows = features.reshape(-1, features.shape[-1])
    rows = rows - rows.mean(axis=0)
    variances, directions = np.linalg.eigh(rows.T @ rows)
    total = max(float(variances.sum()), 1e-30)
    colours, shares = np.full((len(rows), 3), 0.5), np.zeros(3)
    for component in range(min(3, len(variances))):
        variance, direction = variances[-1 - component], directions[:, -1 - component]
        if variance <= 1e-10 * total:
            break
        values = rows @ direction
        values *= np.sign(values[np.abs(values).argmax()])
        low, high = np.percentile(values, (1, 99))
        colours[:, component] = ((values - low) / max(high - low, 1e-30)).clip(0, 1)
        shares[component] = variance / total
    return colours, shares


def attention_picture(images: Array, attention: Array, grid: tuple[int, int]) -> bytes:
    """A PNG with each image (n, C, H, W) uint8 beside the class token's attention (n, heads, L) to its patches.

    The first map is the mean of the heads, then each head's. Each map is shown as a share of its own greatest value.
    ``grid`` is (rows, columns) of the L patches; the class token's attention to itself is not among them.
    """
    pixels, weights = checked_images(images), as_array(attention).astype(np.float64)
    heads = weights.shape[1]
    _check_grid("attention", weights.shape, (len(pixels), heads, grid[0] * grid[1]), grid)
    maps = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)
    maps = (maps / np.maximum(maps.max(axis=2, keepdims=True), 1e-30)).reshape(*maps.shape[:2], *grid)
    shown = [[image, *(_overlaid(image, each) for each in own)] for image, own in zip(pixels, maps, strict=True)]
    legend = "Attention of the class token to each patch\nin the last block, relative to each map's greatest:"
    headings = ["image", "mean", *(f"head {head}" for head in range(1, heads + 1))]
    return _columns(shown, headings, legend, HEAT)


def _overlaid(image: NDArray[np.uint8], shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A map (rows, columns) of values in 0..1 in colours over an image (C, H, W) in grey: (3, H, W)."""
    height, width = image.shape[1:]
    rows = np.arange(height) * shares.shape[0] // height
    columns = np.arange(width) * shares.shape[1] // width
    heat = coloured(shares, HEAT)[rows[:, None], columns[None]]
    grey = np.asarray(rgb(image.transpose(1, 2, 0)).convert("L"))[..., None]
    mixed: NDArray[np.uint8] = np.rint(_IMAGE_SHARE * grey + (1 - _IMAGE_SHARE) * heat).astype(np.uint8)
    return mixed.transpose(2, 0, 1)


def corruption_sheet(picture: Array) -> bytes:
    """A PNG of one picture (C, H, W) uint8 under all corruptions, a row each, and severities, a column each."""
    image = checked_images(as_array(picture)[None])[0]
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    shown = [
        [image, *(corrupted(pixels, name, severity, 0).transpose(2, 0, 1) for severity in SEVERITIES)]
        for name in CORRUPTIONS
    ]
    names = [f"{name}\n({NOTES[name]})" if name in NOTES else name for name in CORRUPTIONS]
    headings = ["picture", *(f"severity {severity}" for severity in SEVERITIES)]
    legend = "The picture under each corruption, at each severity."
    if max(image.shape[1:]) > SIDE:
        share = SIDE / max(image.shape[1:])
        legend += f"\nShown at {share:.0%} of its size: the network sees fine changes more strongly."
    return _columns(shown, headings, legend, names=names)


def _columns(
    shown: Sequence[Sequence[NDArray[np.uint8]]],
    headings: Sequence[str],
    legend: str,
    scale: tuple[tuple[int, int, int], ...] | None = None,
    names: Sequence[str] = (),
) -> bytes:
    """Rows of images (C, H, W), all shown at the first one's size, under headings, with a name before each row."""
    cell = cell_size(shown[0][0].shape[1], shown[0][0].shape[2], SIDE)
    margin = GAP + max((_width_of(name) for name in names), default=0)
    wide = max(cell[1], *(text_width(heading) for heading in headings)) + GAP
    lines = legend.count("\n") + 1
    top = 3 * GAP + LINE * (lines + bool(scale) + 1)
    width = max(margin + wide * len(headings), _width_of(legend) + GAP, 200 if scale else 0)
    picture, pen = sheet(width, top + (cell[0] + GAP) * len(shown))
    write(pen, (GAP, GAP), legend)
    if scale:
        draw_scale(picture, (GAP, GAP + 4 + LINE * lines), scale, ("0", "1"))
    for column, heading in enumerate(headings):
        write(pen, (margin + column * wide, top - LINE - 2), heading)
    for row, images in enumerate(shown):
        y = top + row * (cell[0] + GAP)
        if names:
            write(pen, (GAP, y + cell[0] // 2 - LINE), names[row], INK)
        for column, image in enumerate(images):
            picture.paste(tile(image, cell), (margin + column * wide, y))
    return png(picture)


def _width_of(text: str) -> int:
    """Width of lines of text with a gap after them."""
    return max(text_width(line) for line in text.split("\n")) + GAP


def _check_grid(name: str, shape: tuple[Any, ...], expected: tuple[Any, ...], grid: tuple[int, int]) -> None:
    if shape != expected:
        raise ValueError(f"{name} have the shape {shape}: with a grid of {grid[0]} x {grid[1]} patches use {expected}")
