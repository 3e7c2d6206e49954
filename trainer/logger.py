"""The one logger of the trainer; `trainer.attempt.logs` decides where its records go."""

from __future__ import annotations

import logging

logger = logging.getLogger("rcmae")
