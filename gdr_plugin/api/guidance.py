"""Guidance as data: an instruction and preference exemplars for one domain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One preference shown in the prompt: which of two answers is better, and why."""

    id: str
    """Unique within its guidance; recorded with every score that used it."""
    prompt: str
    good: str
    bad: str
    why: str
    """One or two sentences that explain what makes `good` better here."""
    principle: str = ""
    """A short rule that stands before the example; may be empty."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """What a good answer is in one domain."""

    name: str
    """The name that gdr.yaml uses. Not `none`."""
    instruction: str
    """The text that goes into the system turn; may be empty when there are exemplars."""
    exemplars: tuple[Exemplar, ...] = ()
    description: str = ""
    """One line for people and for the likelihood router: which requests belong to this domain."""


@dataclass(frozen=True, slots=True)
class RenderedGuidance:
    """A guidance turned into the text that goes in front of every prompt of a domain."""

    text: str
    """Empty for no guidance."""
    id: str
    """Identifies the text: `none`, or name, switches, seed and a short content hash."""
    exemplars: tuple[str, ...] = ()
    """Ids of the exemplars drawn, in order."""


NO_GUIDANCE = RenderedGuidance(text="", id="none")
