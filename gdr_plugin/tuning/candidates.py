"""What the search chooses among: instructions crossed with exemplar sets, and no guidance.

Knows guidances and how they are rendered; nothing of pairs or models. Each candidate is the very guidance that the
written file would hold, under the name that it would have: what is scored is what is registered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import Exemplar, Guidance
from gdr_plugin.config.yamlfile import read_yaml
from gdr_plugin.guidance import load_guidance_file, render
from gdr_plugin.tuning.exemplars import clean

NONE = "no guidance"
"""The label of the candidate that is always there."""


@dataclass(frozen=True, slots=True)
class CandidateGuidance:
    """A guidance that is tried."""

    label: str
    """What tables call it: where the instruction and the exemplars come from."""
    guidance: Guidance | None
    """None for no guidance."""
    text: str
    """What stands in front of every prompt."""


@dataclass(frozen=True, slots=True)
class Making:
    """How candidates become text: as gdr.yaml will render the registered guidance."""

    name: str
    """The name that the guidance gets."""
    exemplars: int
    """Exemplars shown at most."""
    seed: int
    """The seed of gdr.yaml that chooses and orders exemplars."""


def read_instructions(path: Path) -> list[Guidance]:
    """Read the user's own candidates.

    Args:
        path: A text file with one instruction a line (`#` begins a comment), or a YAML file: a list of instructions, or
            guidances as in a guidance file, which may have exemplars.

    Returns:
        Guidances; those without a name of their own are called `instruction 1` and so on.

    Raises:
        ConfigError: The file cannot be read, or holds no instruction.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        data = read_yaml(path, "instructions file")
        if not isinstance(data, list):
            return load_guidance_file(path)
        if not all(isinstance(text, str) for text in data):
            raise ConfigError(f"instructions file {path}: must be a list of texts, or a guidance file")
        texts = [clean(text) for text in data]
    else:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ConfigError(f"instructions file {path}: cannot be read: {reason}") from error
        texts = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError(f"instructions file {path}: has no instruction: write one a line")
    return [Guidance(name=f"instruction {number}", instruction=text) for number, text in enumerate(texts, start=1)]


def make_candidates(
    given: Sequence[Guidance],
    known: Sequence[Guidance],
    sets: Sequence[tuple[Exemplar, ...]],
    making: Making,
    *,
    budget: int,
) -> tuple[list[CandidateGuidance], int]:
    """Cross instructions with exemplar sets, the most promising kinds first, and keep the first `budget`.

    The order: no guidance; the user's instructions; those of the library, of plugins and of gdr.yaml's files; both with
    exemplars of their own; drawn exemplars alone; the user's instructions with drawn exemplars; the others with them.

    Args:
        given: The user's instructions, which may have exemplars.
        known: Guidances that are registered or named in gdr.yaml's files.
        sets: Exemplars drawn from the labelled pairs.
        making: Name, number and seed.
        budget: Candidates at most, no guidance included.

    Returns:
        The candidates, no two with the same text, the first being no guidance; and how many more there would be.

    Raises:
        ConfigError: The budget has no room for the user's own instructions.
    """
    needed = 1 + max(1, len(given))
    if budget < needed:
        what = f"no guidance and your {len(given)} instructions" if given else "no guidance and one other"
        raise ConfigError(f"--budget {budget} is too small for {what}: give {needed} at least")
    found: dict[str, CandidateGuidance] = {"": CandidateGuidance(NONE, None, "")}
    for label, guidance in _crossed(given, known, sets, making):
        text = render(guidance, exemplars=making.exemplars, seed=making.seed).text
        found.setdefault(text, CandidateGuidance(label, guidance, text))
    candidates = list(found.values())
    return candidates[:budget], max(0, len(candidates) - budget)


def _crossed(
    given: Sequence[Guidance], known: Sequence[Guidance], sets: Sequence[tuple[Exemplar, ...]], making: Making
) -> Iterator[tuple[str, Guidance]]:
    def named(instruction: str, exemplars: Sequence[Exemplar] = ()) -> Guidance:
        return Guidance(name=making.name, instruction=instruction, exemplars=tuple(exemplars))

    everybody = [*given, *known]
    for guidance in everybody:
        if guidance.instruction.strip():
            yield guidance.name, named(guidance.instruction)
    for guidance in everybody:
        if own := _own_exemplars(guidance, making):
            yield f"{guidance.name} + its {_count(own)}", named(guidance.instruction, own)
    drawn = [(f"{_count(exemplars)} {_ids(exemplars)}", exemplars) for exemplars in sets]
    for label, exemplars in drawn:
        yield label, named("", exemplars)
    for group in (given, known):
        for label, exemplars in drawn:
            for guidance in group:
                if guidance.instruction.strip():
                    yield f"{guidance.name} + {label}", named(guidance.instruction, exemplars)


def _own_exemplars(guidance: Guidance, making: Making) -> list[Exemplar]:
    """The exemplars that the guidance would show under its own name."""
    drawn = render(guidance, exemplars=making.exemplars, seed=making.seed).exemplars
    by_id = {exemplar.id: exemplar for exemplar in guidance.exemplars}
    return [by_id[name] for name in drawn]


def _count(exemplars: Sequence[Exemplar]) -> str:
    return "exemplar" if len(exemplars) == 1 else f"{len(exemplars)} exemplars"


def _ids(exemplars: Sequence[Exemplar]) -> str:
    return ", ".join(exemplar.id for exemplar in exemplars)
