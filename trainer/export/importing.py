"""Importing weights from elsewhere: read, compared with the original's own arithmetic, written, compared again and
registered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

from torch import Tensor

from trainer.errors import SpecRefused
from trainer.export.card import Facts
from trainer.export.graph import check_onnx
from trainer.export.imported import Imported
from trainer.export.version import code_version, write_version
from trainer.export.written import check_written
from trainer.logger import logger
from trainer.protocol.command import Action
from trainer.protocol.parameters import parameters
from trainer.protocol.progress import Phase
from trainer.protocol.request import AttemptRequest
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.export import Network
from trainer.spec.formats import BACKBONE_FORMATS, BACKBONE_HF_MAE, BACKBONE_ONNX
from trainer.spec.importing import ImportSpec
from trainer.storage import Store
from trainer.temporary import temporary_folder
from trainer.tracking.registry import About, BackboneRegistry
from trainer.weights.agreement import check_forward
from trainer.weights.foreign import ForeignWeights, read_weights
from trainer.weights.locating import chosen_network, open_weights

CONFIG: Final = "config.json"


class Decoding(NamedTuple):
    """How an imported decoder was trained."""

    mask_ratio: float = 0.75
    norm_pix_loss: bool = True


PAPERS_DECODING: Final = Decoding()
"""As in the papers of MAE and RC-MAE."""


def import_weights(
    request: AttemptRequest,
    spec: ImportSpec,
    registry: BackboneRegistry,
    enter: Callable[[Phase], None] = lambda _: None,
    requested_action: Callable[[], Action | None] = lambda: None,
) -> Action | None:
    """Register the weights that a spec names; doing it twice keeps one version.

    ``enter`` is told each phase. Returns the command that was obeyed before anything was registered, if there was one.
    Raises `SpecRefused` where the spec does not fit the source, `WeightsRefused` for weights that cannot be imported
    or do not agree, `DataError` for a link that leads out of the roots, and `StorageError`.
    """
    if BACKBONE_ONNX in (spec.export.formats or BACKBONE_FORMATS):
        check_onnx()
    enter("reading")
    logger.info("Reading the weights of %s", spec.origin.name)
    store, name = open_weights(spec.source, "source", request.dataset_roots)
    source = spec.source
    weights = read_weights(store, name, num_heads=source.num_heads, decoder_num_heads=source.decoder_num_heads)
    network, state = chosen_network(weights, spec.export.network, "export.network")
    found = _described(spec, request.job_id, weights, network, state, _decoding(store, name, weights))
    if action := requested_action():
        return action
    enter("checking")
    logger.info("Comparing the network with the original's own arithmetic")
    imported = replace(found, deviation=check_forward(weights))
    for note in imported.notes:
        logger.info("%s", note)
    if action := requested_action():
        return action
    # Before the formats are written, which takes the most memory, the source's own tensors and the other network go.
    weights = replace(weights, state={}, networks={}, originals=())
    with temporary_folder() as directory:
        enter("writing")
        logger.info("Writing %s", ", ".join(imported.formats))
        facts = _facts(spec, imported, weights)
        tags = write_version(directory, facts, state)
        check_written(directory, imported.formats, state, weights.model)
        if action := requested_action():
            return action
        enter("registering")
        about = About(tags, request.run_id, parameters(imported.document), {}, 0)
        number = registry.register(spec.register_as, directory, about)
    logger.info("Registered version %d of the backbone %s from %s", number, spec.register_as, spec.origin.name)
    return None


def _decoding(store: Store, name: str, weights: ForeignWeights) -> Decoding | None:
    """How the decoder was trained, if ``config.json`` says; None if it does not."""
    if weights.source_format != "vit_mae":
        return None
    config = json.loads(store.read(f"{name}/{CONFIG}" if name else CONFIG))
    with suppress(TypeError, ValueError):
        ratio = float(config.get("mask_ratio", PAPERS_DECODING.mask_ratio))
        if 0 < ratio < 1:
            return Decoding(ratio, bool(config.get("norm_pix_loss", False)))  # transformers' own defaults
    return None


def _described(
    spec: ImportSpec,
    job_id: str,
    weights: ForeignWeights,
    network: Network | None,
    state: Mapping[str, Tensor],
    decoding: Decoding | None,
) -> Imported:
    model = weights.model
    decoder = any(map(is_decoder, state))
    notes = list(weights.notes)
    if decoder and decoding is None:
        notes.append(
            "The source does not say how its decoder was trained: a mask ratio of 0.75 and normalised pixels, as in "
            "the papers, were assumed."
        )
    if weights.license and weights.license.lower() != spec.license.lower():
        notes.append(f"The source's own card names the licence {weights.license}, and the import {spec.license}.")
    return Imported(
        spec=spec,
        job_id=job_id,
        source_format=weights.source_format,
        files=weights.sha256,
        model=model,
        masking=(decoding or PAPERS_DECODING) if decoder else None,
        network=network,
        formats=_formats(spec, square=model.height == model.width, decoder=decoder),
        deviation=0.0,
        fitting=weights.fitting,
        notes=tuple(notes),
    )


def _formats(spec: ImportSpec, *, square: bool, decoder: bool) -> tuple[str, ...]:
    """The formats that the spec asks for, or all that are possible."""
    lacks = "the source has no decoder" if not decoder else "" if square else "its images are not square"
    if spec.export.formats is None:
        return tuple(form for form in BACKBONE_FORMATS if form != BACKBONE_HF_MAE or not lacks)
    if BACKBONE_HF_MAE in spec.export.formats and lacks:
        raise SpecRefused(f"export.formats: hf-mae is not possible, because {lacks}: leave it out")
    return spec.export.formats


def _facts(spec: ImportSpec, imported: Imported, weights: ForeignWeights) -> Facts:
    return Facts(
        name=spec.register_as,
        model=weights.model,
        network=imported.network,
        formats=imported.formats,
        license=spec.license,
        license_link=spec.license_link,
        masking=imported.masking or PAPERS_DECODING,
        value_range=weights.value_range,
        mean=weights.mean,
        std=weights.std,
        registered_by=imported.job_id,
        code_version=code_version(),
        provenance=imported,
    )
