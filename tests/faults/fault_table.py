"""What became of each fault in each phase, as one table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass
class Table:
    """Cells by fault and phase, in the order they come."""

    seed: int
    """Decides all that faults leave to chance; RCMAE_FAULT_SEED sets it."""
    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, fault: str, phase: str, outcome: str) -> None:
        self.rows.setdefault(fault, {})[phase] = outcome

    def markdown(self) -> str:
        phases = list(dict.fromkeys(phase for cells in self.rows.values() for phase in cells))
        lines = [
            f"Seed {self.seed}. Each cell: attempts, how each ended, charged or not, where it was struck.",
            "",
            f"| fault | {' | '.join(phases)} |",
            "|---" * (len(phases) + 1) + "|",
        ]
        lines += [
            f"| {fault} | {' | '.join(cells.get(phase, '') for phase in phases)} |"
            for fault, cells in self.rows.items()
        ]
        return "\n".join(lines)


TABLE = Table(seed=int(os.environ.get("RCMAE_FAULT_SEED", "3")))
