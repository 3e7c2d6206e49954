"""Signs registered versions that have no signature: new ones at once, and those from before there was a key."""

from __future__ import annotations

from datetime import timedelta

import structlog

from service import signing_key
from service.adapters.storage import OutsideRoot
from service.backbones import signing
from service.backbones.signature_schemas import LARGEST_SUMS
from service.backbones.signing import Signer
from service.controller.context import ControllerContext
from service.controller.dependencies import Refused
from service.controller.passes import over_versions
from service.controller.queue import Task
from service.db.tables import BackboneVersion
from trainer.protocol import names

log = structlog.get_logger()


def sign_versions(context: ControllerContext, task: Task) -> timedelta:
    """Sign the next versions without a signature, if there is a key; returns the pause before more are signed.

    A version that cannot be signed, for want of checksums, is looked at again in the next pass. Raises `Unavailable`.
    """
    path = context.app.settings.signing_key_file
    if path is None:
        return timedelta(seconds=context.app.settings.sweep_interval_s)
    signer = Signer(signing_key.read(path))
    with context.app.database.read() as session:
        listed = signing.has_key(session, signer)
    if not listed:
        with context.write() as session:
            signing.add_key(session, signer)
        log.info("signing_key_added", key=signer.id)
    return over_versions(context, task, signing.unsigned(), lambda version: _sign(context, signer, version))


def _sign(context: ControllerContext, signer: Signer, version: BackboneVersion) -> None:
    try:
        sums = _sums(context, version)
    except Refused as error:  # the others are signed
        log.warning("version_not_signed", backbone=version.name, version=version.version, detail=str(error))
        return
    if not sums:
        log.debug("version_not_signed", backbone=version.name, version=version.version)
        return
    with context.write() as session:
        signed = signing.record(session, version, signer, sums)
    if signed:
        log.info("version_signed", backbone=version.name, version=version.version, key=signer.id)


def _sums(context: ControllerContext, version: BackboneVersion) -> bytes | None:
    """A version's checksum file; None if there is none that can be signed."""
    artifacts, folder = context.app.artifacts, version.folder or ""
    try:
        with context.dependencies.storage.call():
            file = artifacts.file(folder, names.BACKBONE_SUMS)
            if file is None or file.size > LARGEST_SUMS:
                return None
            return artifacts.read(folder, names.BACKBONE_SUMS)
    except OutsideRoot:
        return None
