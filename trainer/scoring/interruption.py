"""Commands that end an evaluation early."""

from __future__ import annotations

from trainer.protocol.command import Action


class Interrupted(Exception):
    """A command ends the attempt. Survives pickling, so that every rank learns of it."""

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        self.action = action
