"""A picture of reconstructions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.evaluation.canvas import GAP, png, rgb, sheet, write
from trainer.evaluation.features import evaluating
from trainer.models.pixels import normalised, patch_statistics, patchify, take_patches, unpatchify
from trainer.models.rc_mae import MaskedAutoencoder

CELL = 160
"""The least height of an image in the picture, in pixels."""
HEADING = 36
MASK_GREY = 0.5


@torch.no_grad()
def reconstruction_grid(
    model: MaskedAutoencoder,
    images: Tensor,
    orders: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    norm_pix_loss: bool,
    visible: int,
) -> bytes:
    """A PNG with a row for each image (n, C, H, W) uint8: input, masked, reconstruction.

    ``orders`` (n, L), of which the first ``visible`` patches are visible; the reconstruction shows those unchanged.
    With ``norm_pix_loss`` the network predicts normalised pixels: each patch's own mean and deviation are applied to
    the prediction, and the heading says so.
    """
    device = next(model.parameters()).device
    pixels, order = normalised(images.to(device), mean, std), orders.to(device)
    patch, channels = model.patch_size, images.shape[1]
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    patches = take_patches(pixels, order, patch)
    with evaluating(model):
        prediction = model(patches[:, :visible], order).float()
    if norm_pix_loss:
        centre, deviation = patch_statistics(patches[:, visible:])
        prediction = prediction * deviation + centre
    index = order[:, visible:, None].expand(-1, -1, patches.shape[2])
    shown = patchify(pixels, patch).scatter(1, index, prediction)
    reconstructed = _to_pixels(unpatchify(shown, patch, grid, channels), mean, std)
    original = _to_pixels(pixels, mean, std)
    hidden = patchify(torch.from_numpy(original).permute(0, 3, 1, 2), patch)
    hidden.scatter_(1, index.cpu(), MASK_GREY)
    masked = unpatchify(hidden, patch, grid, channels).permute(0, 2, 3, 1).numpy()
    heading = "reconstruction,\npatch statistics put back" if norm_pix_loss else "reconstruction"
    return _draw([original, masked, reconstructed], ["input", "masked", heading])


def _to_pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Normalised images (n, C, H, W) as (n, H, W, C) in 0..1."""
    spread = torch.tensor(std, device=images.device).view(1, -1, 1, 1)
    values = images * spread + torch.tensor(mean, device=images.device).view(1, -1, 1, 1)
    pixels: NDArray[np.float32] = values.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def _draw(columns: list[NDArray[np.float32]], headings: list[str]) -> bytes:
    rows, height, width, _ = columns[0].shape
    scale = max(1, -(-CELL // height))
    cell_height, cell_width = height * scale, width * scale
    picture, pen = sheet(len(columns) * (cell_width + GAP) + GAP, rows * (cell_height + GAP) + HEADING + GAP)
    for column, (images, heading) in enumerate(zip(columns, headings, strict=True)):
        left = GAP + column * (cell_width + GAP)
        write(pen, (left, 4), heading)
        for row, image in enumerate(images):
            tile = rgb(np.rint(image * 255).astype(np.uint8))
            tile = tile.resize((cell_width, cell_height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, HEADING + row * (cell_height + GAP)))
    return png(picture)
