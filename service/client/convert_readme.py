"""The README.md of a converted backbone: how its library loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DETECTRON2: Final = """# A backbone for detectron2

- `{weights}`: the weights, under the names of MAE's and ViTDet's checkpoints, as `DetectionCheckpointer` takes them.
- `config.json`: the arguments of `detectron2.modeling.ViT`, and the input: pixel values as pictures hold them,
  {order}, minus `pixel_mean`, divided by `pixel_std`.
- `model.safetensors`: the same weights without pickle.

In a config of ViTDet, `projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py` for example:

```python
import json
from pathlib import Path

converted = Path("{folder}")
settings = json.loads((converted / "config.json").read_text())
for name, value in settings["backbone"].items():
    setattr(model.backbone.net, name, value)
model.pixel_mean, model.pixel_std = settings["pixel_mean"], settings["pixel_std"]
{order_code}train.init_checkpoint = f"{{converted}}/{weights}?matching_heuristics=True"
```

`norm_layer` of ViTDet's configs has the right eps ({eps:g}). The network has {depth} blocks: `window_block_indexes`
must fit that. The log says which tensors were matched. ViTDet's ViT has no class token and no final norm, so
`cls_token` and `norm` find no place; its relative positions and the detector's own layers are new.

To load the network alone:

```python
from functools import partial

import torch
from detectron2.modeling import ViT

norm = partial(torch.nn.LayerNorm, eps=settings["norm_eps"])
network = ViT(img_size={size}, norm_layer=norm, **settings["backbone"])
weights = torch.load(converted / "{weights}", weights_only=True)["model"]
print(network.load_state_dict(weights, strict=False))
```
"""
MMPRETRAIN: Final = """# A backbone for mmpretrain

- `{weights}`: the weights, under mmpretrain's names, as mmengine's `load_checkpoint` takes them.
- `config.json`: the settings `backbone` and `data_preprocessor` of a model. The latter is for pixel values as
  pictures hold them, {order_text}
- `model.safetensors`: the same weights without pickle.

```python
import json
from pathlib import Path

from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules

register_all_modules()
converted = Path("{folder}")
settings = json.loads((converted / "config.json").read_text())
model = MODELS.build(dict(type="ImageClassifier", **settings))
load_checkpoint(model, f"{{converted}}/{weights}", map_location="cpu", strict=True)
```

In a config, write the settings into `model`, and let the backbone load the weights:

```python
init_cfg = dict(type="Pretrained", checkpoint="{folder}/{weights}", prefix="backbone")
```

The backbone gives the class token by default, and with `out_type="raw"` all tokens after the final norm. Its
`out_type="avg_featmap"` puts a norm that was never trained behind the mean of the patch tokens.
"""


def detectron2_readme(settings: Mapping[str, Any], folder: str, weights: str) -> str:
    """The text for detectron2."""
    backbone, order = settings["backbone"], settings.get("input_format")
    code = (
        f'model.input_format = dataloader.train.mapper.image_format = "{order}"\n'
        f'dataloader.test.mapper.image_format = "{order}"\n'
        if order
        else ""
    )
    words = {
        "RGB": "in the order red, green, blue (`RGB`; detectron2's own default is `BGR`)",
        "L": "of one grey channel (`L`)",
    }
    in_order = words.get(order or "", "with channels in the order of the pretraining data")
    return DETECTRON2.format(
        folder=folder, weights=weights, order=in_order, order_code=code, eps=settings["norm_eps"],
        size=backbone["pretrain_img_size"], depth=backbone["depth"],
    )  # fmt: skip


def mmpretrain_readme(settings: Mapping[str, Any], folder: str, weights: str) -> str:
    """The text for mmpretrain."""
    pixels = settings["data_preprocessor"]
    channels = len(pixels["mean"])
    text = (
        "read as mmcv reads pictures, in the order blue, green, red: `to_rgb` reverses it, since the backbone takes "
        "red, green, blue."
        if pixels["to_rgb"]
        else 'read with `LoadImageFromFile(color_type="grayscale")`.'
        if channels == 1
        else f"with the {channels} channels in the order of the pretraining data."
    )
    return MMPRETRAIN.format(folder=folder, weights=weights, order_text=text)
