"""What a day of chaos did, and what it broke: counted by every part, shown as one table at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Figures:
    """Figures by name, in the order in which they came up."""

    told: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Named `part: what`; shown beside what is told."""
    broken: list[str] = field(default_factory=list)
    """What should have held and did not."""

    def tell(self, name: str, value: object) -> None:
        """Note a figure that is not a count."""
        self.told[name] = f"{value:,.3g}" if isinstance(value, float) else f"{value}"

    def check(self, held: bool, what: str) -> None:
        """Note what did not hold; the same words once."""
        if not held and what not in self.broken:
            self.broken.append(what)

    def table(self) -> str:
        """All of it, a line each."""
        rows = {**self.told, **{name: f"{count:,}" for name, count in sorted(self.counts.items())}}
        width = max(map(len, rows), default=0)
        lines = [f"{name:{width}}  {value}" for name, value in rows.items()]
        ends = [f"BROKEN: {what}" for what in self.broken[:50]]
        return "\n".join([*lines, *(ends or ["nothing was lost, changed or made up"])])
