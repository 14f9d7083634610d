"""Renders guidance as text and puts the text into a conversation. Knows no tokenizer: a model's chat format renders it.

The guidance stands first in the system turn and depends on nothing but the guidance, its switches and the seed, so all
prompts of a domain begin with the same tokens and a model reads them once.
"""

from __future__ import annotations

import hashlib

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.api.guidance import NO_GUIDANCE, Exemplar, Guidance, RenderedGuidance
from gdr_plugin.api.types import Conversation, Message, parts_of

__all__ = ["apply", "render"]

_CLOSING = "Each reply to the user follows the standard of the good assistant above, not that of the bad one."


def render(
    guidance: Guidance | None, *, instruction: bool = True, exemplars: int = 1, seed: int = 0
) -> RenderedGuidance:
    """Render a guidance as the text that goes in front of every prompt of its domain.

    The exemplars are drawn by a hash of the seed, the guidance's name and their own ids: the same on every machine and
    for every prompt of a domain, independent of their order in the file, and a draw of more begins with the draw of
    fewer.

    Args:
        guidance: What to render; None for no guidance.
        instruction: Whether the instruction is rendered.
        exemplars: How many exemplars are drawn; all of them where there are fewer.
        seed: Chooses the exemplars.

    Returns:
        The text, its identifier such as `safety[instruction,exemplars=1,seed=0]@3f2a91c0` (the last part is a hash of
        the text), and the drawn exemplars' ids; `NO_GUIDANCE` when there is nothing to render.

    Raises:
        ConfigError: `exemplars` is negative.
    """
    if exemplars < 0:
        raise ConfigError(f"guidance.exemplars: must be 0 or more, not {exemplars}")
    if guidance is None:
        return NO_GUIDANCE
    drawn = _draw(guidance, exemplars, seed)
    parts = [guidance.instruction.strip()] if instruction and guidance.instruction.strip() else []
    switches = ["instruction"] if parts else []
    if drawn:
        parts += [_exemplar_text(exemplar, index) for index, exemplar in enumerate(drawn, start=1)]
        parts.append(_CLOSING)
        switches += [f"exemplars={len(drawn)}", f"seed={seed}"]
    if not parts:
        return NO_GUIDANCE
    text = "\n\n".join(parts)
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return RenderedGuidance(
        text=text,
        id=f"{guidance.name}[{','.join(switches)}]@{digest}",
        exemplars=tuple(exemplar.id for exemplar in drawn),
    )


def apply(rendered: RenderedGuidance, conversation: Conversation) -> Conversation:
    """Put a rendered guidance into the conversation's system turn.

    Args:
        rendered: The guidance; with an empty text the conversation is returned as it is.
        conversation: The prompt. Its leading system turns are merged into one, after the guidance and a blank line;
            their texts and all other turns stay as they are.

    Returns:
        The guided conversation: tools where there are any, one system turn, then the other turns.
    """
    if not rendered.text:
        return conversation
    tools, system, rest = parts_of(conversation)
    texts = [rendered.text, *(message.content for message in system if message.content)]
    return (*tools, Message("system", "\n\n".join(texts)), *rest)


def _draw(guidance: Guidance, count: int, seed: int) -> list[Exemplar]:
    def rank(exemplar: Exemplar) -> bytes:
        key = "\0".join((str(seed), guidance.name, exemplar.id))
        return hashlib.blake2b(key.encode(), digest_size=8).digest()

    return sorted(guidance.exemplars, key=rank)[:count]


def _exemplar_text(exemplar: Exemplar, number: int) -> str:
    title = f"Example {number}."
    return "\n\n".join(
        (
            f"{title} {exemplar.principle.strip()}" if exemplar.principle.strip() else title,
            f"User:\n{exemplar.prompt}",
            f"Good Assistant:\n{exemplar.good}",
            f"Bad Assistant:\n{exemplar.bad}",
            f"Explanation: {exemplar.why}",
        )
    )
