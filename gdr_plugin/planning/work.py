"""How much there is to score: prompts, responses and their lengths, given or measured, and each domain's guidance.

Knows chat formats and rows; nothing of devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from gdr_plugin.api.errors import ChatError, ConfigError, DataError
from gdr_plugin.api.guidance import RenderedGuidance
from gdr_plugin.api.types import Conversation, Message
from gdr_plugin.data.rows import is_score_row, parse_prompt_row, parse_score_row
from gdr_plugin.data.sources import Row, read_rows
from gdr_plugin.guidance import apply
from gdr_plugin.planning.flops import Costs, Flops, expected_flops
from gdr_plugin.planning.models import PlannedModel

__all__ = ["PROMPT_TOKENS", "RESPONSE_TOKENS", "Given", "Lengths", "SideWork", "side_work"]

PROMPT_TOKENS, RESPONSE_TOKENS = 150, 300
"""Lengths that are assumed where nothing is said: those of common prompts and answers of chat data."""
_MEASURED = 500
"""Rows of an input whose tokens are counted."""
_CHARACTERS_A_TOKEN = 4
_PROBE: Conversation = (Message("user", "How many days are there in a leap year?"),)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths under one model's tokenizer, in tokens."""

    prompt: float
    """The template's own tokens included, guidance not."""
    response: float


@dataclass(slots=True)
class Given:
    """An input's rows, as far as a plan needs them."""

    rows: int = 0
    responses: int = 0
    samples: list[tuple[Conversation, tuple[str, ...]]] = field(default_factory=list)
    """The first rows: prompt and responses."""

    @classmethod
    def read(cls, source: str | Path, columns: Mapping[str, str] | None = None) -> Given:
        """Read an input of `gdr annotate` or `gdr score`.

        Args:
            source: As for `read_rows`.
            columns: New name -> the input's name of columns.

        Raises:
            DataError: It cannot be read, a row of the first is bad, or there is none.
        """
        found = cls()
        rows = read_rows(source, columns=columns)
        for row in islice(rows, _MEASURED):
            prompt, responses = _asked(row)
            found.samples.append((prompt, responses))
            found.rows += 1
            found.responses += len(responses)
        if not found.rows:
            raise DataError(f"{source}: there are no rows to plan for")
        seen = found.rows
        found.rows += sum(1 for _ in rows)
        found.responses = round(found.responses * found.rows / seen)
        return found

    def lengths(self, model: PlannedModel, prompt: float | None, response: float | None) -> Lengths:
        """Mean lengths of the rows; what is given wins.

        Args:
            model: Whose tokens are counted.
            prompt: Tokens of a prompt, where the user says so.
            response: Tokens of a response, where the user says so.
        """
        prompts = [_tokens(model, asked, "")[0] for asked, _ in self.samples]
        answers = [_tokens(model, asked, text)[1] for asked, texts in self.samples for text in texts]
        return Lengths(
            prompt if prompt is not None else sum(prompts) / len(prompts),
            response if response is not None else sum(answers) / len(answers) if answers else RESPONSE_TOKENS,
        )


@dataclass(frozen=True, slots=True)
class SideWork:
    """What one model has to do."""

    guidance: tuple[float, ...]
    """Tokens of each domain's guidance."""
    lengths: Lengths
    prompts: float
    samples: float

    @property
    def shared(self) -> float:
        """Tokens of guidance, all domains together."""
        return sum(self.guidance)

    @property
    def longest(self) -> float:
        """Tokens of a sequence behind the longest guidance."""
        return max(self.guidance) + self.lengths.prompt + self.lengths.response

    @property
    def tokens(self) -> float:
        """Tokens that pass through the layers before the head when nothing is computed twice."""
        each = self.lengths.prompt + self.samples * max(0.0, self.lengths.response - 1)
        return self.shared + self.prompts * each

    @property
    def rows(self) -> float:
        """States that pass through the head."""
        return self.prompts * (1 + self.samples * max(0.0, self.lengths.response - 1))

    def flops(self, costs: Costs) -> Flops:
        """Operations, each domain having an equal share of the prompts."""
        total = Flops(0.0, 0.0)
        for guidance in self.guidance:
            total += expected_flops(
                costs,
                guidance=guidance,
                prompt=self.lengths.prompt,
                response=self.lengths.response,
                prompts=self.prompts / len(self.guidance),
                samples=self.samples,
            )
        return total


def side_work(
    model: PlannedModel,
    rendered: Sequence[RenderedGuidance],
    lengths: Lengths,
    *,
    guided: bool,
    prompts: float,
    samples: float,
) -> SideWork:
    """What a model has to do.

    Args:
        model: The model, whose tokenizer counts the guidance.
        rendered: The guidance of every domain.
        lengths: Of prompts and responses.
        guided: Whether this model sees the guidance.
        prompts: How many.
        samples: Responses to each.

    Raises:
        ConfigError: Guidance, prompt and response are longer together than what the model was built for.
    """
    plain = _tokens(model, _PROBE, "")[0]
    guidance = tuple(
        _tokens(model, apply(text, _PROBE), "")[0] - plain if guided and text.text else 0.0 for text in rendered
    )
    work = SideWork(guidance, lengths, prompts, samples)
    if model.length is not None and work.longest > model.length:
        raise ConfigError(
            f"{model.name}: guidance, prompt and response have {work.longest:,.0f} tokens together, the model was "
            f"built for {model.length:,}"
        )
    return work


def _asked(row: Row) -> tuple[Conversation, tuple[str, ...]]:
    if is_score_row(row.data):
        sample = parse_score_row(row).sample
        return sample.prompt, (sample.text,)
    parsed = parse_prompt_row(row)
    return parsed.prompt, tuple(response.text for response in parsed.responses or ())


def _tokens(model: PlannedModel, conversation: Conversation, response: str) -> tuple[float, float]:
    """Tokens of the context and of a response behind it."""
    if model.chat is None:
        characters = sum(len(turn.text) for turn in conversation)
        return characters / _CHARACTERS_A_TOKEN, len(response) / _CHARACTERS_A_TOKEN
    try:
        span = model.chat.span(conversation, response, end=True)
    except ChatError as error:
        raise ConfigError(f"{model.name}: the guidance or a prompt cannot be rendered ({error})") from error
    return float(len(span.context)), float(len(span.response))
