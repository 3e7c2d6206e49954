"""Pictures of an evaluation: what is drawn where, in which colour."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.evaluation.canvas import (
    GAP,
    HEAT,
    LINE,
    PALE,
    RIGHT,
    SHARES,
    WRONG,
    cell_size,
    class_label,
    coloured,
    cut,
    text_width,
)
from trainer.evaluation.confusion_picture import confusion_picture
from trainer.evaluation.corruptions.catalogue import corrupted
from trainer.evaluation.sheets import (
    SIDE,
    attention_picture,
    corruption_sheet,
    neighbours_picture,
    patch_features_picture,
)

CLASSES = ("cat", "dog", "a very long name of a class that fits into no cell")


def opened(data: bytes):
    picture = Image.open(io.BytesIO(data))
    assert picture.format == "PNG"
    assert picture.mode == "RGB"
    pixels = np.asarray(picture)
    assert (pixels[0, 0] == 255).all()  # a light background
    return pixels


def images(count: int, height: int = 32, width: int = 32, channels: int = 3):
    return np.random.default_rng(count).integers(0, 256, (count, channels, height, width)).astype(np.uint8)


def blocks(pixels, colour):
    """Whether a pixel has exactly this colour."""
    return (pixels == np.array(colour)).all(axis=-1)


def matrix_of(pixels, classes: int, cell: int):
    """The corners of the matrix's cells, found by the frame around it: its lower edge is the last long dark line."""
    frame = np.flatnonzero(blocks(pixels, (30, 30, 30)).sum(axis=1) >= classes * cell)
    top = frame[-1] - classes * cell
    left = np.flatnonzero(blocks(pixels[top : top + classes * cell], (30, 30, 30)).all(axis=0))[0] + 1
    return [[pixels[top + row * cell, left + column * cell] for column in range(classes)] for row in range(classes)]


def test_a_cell_of_a_confusion_matrix_has_the_colour_of_its_share_of_the_row():
    confusion = np.array([[75, 25, 0], [0, 10, 0], [0, 0, 0]])
    pixels = opened(confusion_picture(confusion, CLASSES))
    corners = matrix_of(pixels, 3, 36)
    assert (corners[0][0] == coloured(np.array(0.75), SHARES)).all()
    assert (corners[0][1] == coloured(np.array(0.25), SHARES)).all()
    assert (corners[0][2] == 255).all()
    assert (corners[1][1] == SHARES[-1]).all()
    assert all((corner == PALE).all() for corner in corners[2])  # no test image


@pytest.mark.parametrize(("classes", "cell"), [(2, 36), (20, 36), (21, 18), (40, 18), (41, 17), (300, 2), (1000, 1)])
def test_confusion_matrices_of_all_sizes_show_each_class(classes, cell):
    confusion = np.diag(np.full(classes, 4))
    confusion[0, -1] = 12
    pixels = opened(confusion_picture(confusion, [f"class {index}" for index in range(classes)]))
    corners = matrix_of(pixels, classes, cell)
    share = 0.75 if classes <= 40 else 0.75**0.5
    assert (corners[0][-1] == coloured(np.array(share), SHARES)).all()
    assert all((corners[index][index] == SHARES[-1]).all() for index in range(1, classes))
    assert max(pixels.shape[:2]) < 1400


def test_more_classes_than_pixels_are_added_up():
    pixels = opened(confusion_picture(np.eye(2100, dtype=np.int64), [str(index) for index in range(2100)]))
    assert max(pixels.shape[:2]) < 1000
    assert blocks(pixels, SHARES[-1]).sum() >= 700


def test_a_confusion_matrix_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\), for 3 classes"):
        confusion_picture(np.eye(2, dtype=np.int64), CLASSES)


def neighbours(height=32, width=32, channels=3):
    return neighbours_picture(
        torch.from_numpy(images(2, height, width, channels)),
        torch.tensor([0, 1]),
        np.array([0, 0]),
        images(6, height, width, channels).reshape(2, 3, channels, height, width),
        np.array([[0, 1, 0], [2, 2, 1]]),
        np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]]),
        CLASSES,
    )


def test_frames_say_which_neighbours_are_of_the_test_image_s_class():
    pixels = opened(neighbours())
    right, wrong = blocks(pixels, RIGHT), blocks(pixels, WRONG)
    edge = 3 * 32 + 6  # enlarged by three, with a frame of three pixels on each side
    left = [GAP + column * (SIDE + 2 * GAP) for column in range(4)]
    top = np.flatnonzero((right | wrong)[:, GAP : GAP + edge].all(axis=1))[0]
    framed = [
        ["right" if right[y, x : x + edge].all() else "wrong" if wrong[y, x : x + edge].all() else "none" for x in left]
        for y in (top, top + edge - 6 + 2 * LINE + 2 + 2 * GAP)
    ]
    assert framed == [["right", "right", "wrong", "right"], ["wrong", "wrong", "wrong", "right"]]
    shown = pixels[top + 3 : top + 3 + 96 : 3, GAP + 3 : GAP + 3 + 96 : 3]
    assert (shown == images(2)[0].transpose(1, 2, 0)).all()


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 1), (224, 224, 3), (16, 100, 5), (300, 64, 2)])
def test_all_pictures_take_any_size_and_number_of_channels(height, width, channels):
    shown, grid = images(2, height, width, channels), (4, 5)
    random = np.random.default_rng(0)
    for data in (
        neighbours(height, width, channels),
        patch_features_picture(shown, random.random((2, 20, 6)), grid),
        attention_picture(shown, random.random((2, 3, 20)), grid),
        corruption_sheet(shown[0]),
    ):
        assert min(opened(data).shape[:2]) > SIDE


def tokens(n=3, patches=16, width=12):
    random = np.random.default_rng(3)
    return random.normal(size=(n, patches, width)) * np.linspace(4, 0.1, width) + random.normal(size=width)


def test_rotated_and_shifted_features_give_the_same_picture():
    features = tokens()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    first = opened(patch_features_picture(images(3), features, (4, 4)))
    for other in (features @ rotation, -features, features * 7 + 5):
        assert np.abs(opened(patch_features_picture(images(3), other, (4, 4))).astype(int) - first).max() <= 1


def maps_of(pixels, column, rows, grid):
    """Colours (rows, h, w, 3) at the centre of each patch of the maps in a column of images of 32 pixels."""
    left = GAP + column * (96 + GAP)
    top = len(pixels) - rows * (96 + GAP)
    step = 96 // grid
    tiles = [pixels[top + row * (96 + GAP) :][:96, left : left + 96] for row in range(rows)]
    return np.stack([each[step // 2 :: step, step // 2 :: step] for each in tiles])


def test_patches_have_the_colours_of_their_principal_components():
    """One direction of variance: red from dark to bright, green and blue, which have none, at half."""
    features = np.zeros((1, 16, 8))
    features[0, :, 5] = np.arange(16) ** 2  # the value furthest from the mean is the last one: it is bright
    colours = maps_of(opened(patch_features_picture(images(1), features, (4, 4))), 1, 1, 4)[0].reshape(16, 3)
    assert (colours[:, 1:] == 128).all()
    assert colours[0, 0] == 0
    assert colours[-1, 0] == 255
    assert (np.diff(colours[:, 0].astype(int)) >= 0).all()


def test_attention_is_shown_relative_to_each_map_s_greatest_value():
    attention = np.zeros((1, 2, 16))
    attention[0, 0, 5], attention[0, 1, 10] = 0.3, 0.1
    attention[0, 1, 0] = 0.05
    black = np.zeros((1, 3, 32, 32), np.uint8)
    pixels = opened(attention_picture(torch.from_numpy(black), torch.from_numpy(attention), (4, 4)))
    mean, first, second = (maps_of(pixels, column, 1, 4)[0].reshape(16, 3) for column in (1, 2, 3))
    for shown, shares in ((mean, {5: 1, 10: 1 / 3, 0: 1 / 6}), (first, {5: 1}), (second, {10: 1, 0: 0.5})):
        values = np.array([shares.get(patch, 0) for patch in range(16)])
        expected = coloured(values, HEAT) * 0.65  # the rest is the image, which is black
        assert np.abs(shown - expected).max() <= 1


def test_patches_that_do_not_fit_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"tokens have the shape \(1, 16, 12\): with a grid of 4 x 5"):
        patch_features_picture(images(1), tokens(1), (4, 5))
    with pytest.raises(ValueError, match=r"attention have the shape \(1, 3, 17\)"):
        attention_picture(images(1), np.ones((1, 3, 17)), (4, 4))
    with pytest.raises(ValueError, match="float64"):
        patch_features_picture(images(1) / 255, tokens(1), (4, 4))


def test_the_sheet_of_corruptions_has_a_row_for_each():
    image = images(1)[0]
    pixels = opened(corruption_sheet(image))
    left = pixels.shape[1] - 6 * (96 + GAP)
    last = pixels[-(96 + GAP) : -GAP, -(96 + GAP) : -GAP][::3, ::3]
    assert (last == corrupted(image.transpose(1, 2, 0), "jpeg_compression", 5, 0)).all()
    first = pixels[-15 * (96 + GAP) :][:96, left : left + 96][::3, ::3]
    assert (first == image.transpose(1, 2, 0)).all()


def test_names_are_cut_to_their_room_and_numbered_where_the_font_lacks_their_letters():
    assert [class_label(("Café au\nlait", "馬", "cat"), index) for index in range(3)] == [
        "Cafe au lait",
        "class 1",
        "cat",
    ]
    short = cut("a very long name of a class", 80)
    assert short.endswith("...")
    assert text_width(short) <= 80
    assert cut("cat", 80) == "cat"
    assert cell_size(32, 32, SIDE) == (96, 96)
    assert cell_size(448, 224, SIDE) == (112, 56)
