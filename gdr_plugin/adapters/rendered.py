"""Samples out of templated text, for dialects and adapters of trainers that pass on no messages.

Knows the policy's template (through a reader) and what a label may say; nothing of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import DataError, unknown
from gdr_plugin.api.types import TEXT, Conversation, Message, Sample
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.data.tools import tools_of
from gdr_plugin.text import text_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.api.service import ServeSettings
    from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader


class RenderedSamples:
    """Reads samples out of what a policy's template rendered.

    Args:
        settings: `plain` counts here.
        reader: Reads messages and responses out of rendered text. None: a text with a response in it is refused.
        guidances: Says which guidance each domain has; asked only where a label names a guidance.
    """

    def __init__(
        self,
        settings: ServeSettings,
        reader: RenderedPromptReader | None,
        guidances: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._guidances = guidances

    def samples(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> list[Sample]:
        """The samples of a request.

        Args:
            queries: Prompt and response of each.
            prompts: The prompts alone, as the chat template rendered them.
            labels: One value each, or none at all. Of a mapping, `messages` is the prompt (instead of the one read from
                the templated string; with the definitions in `tools`), `guidance` names a guidance, `domain` and all
                others become the sample's fields.
                Another value becomes the field `label`.

        Raises:
            DataError: The lists do not fit each other, a text is not what the policy's template writes, or a label is
                malformed. The message says which item.
        """
        count = len(queries)
        for name, values in (("prompts", prompts), ("labels", labels or [None] * count)):
            if len(values) != count:
                raise DataError(f"{len(values)} {name} for {count} queries: send one for each")
        items = enumerate(zip(queries, prompts, labels or [None] * count, strict=True))
        return [self._sample(number, *item) for number, item in items]

    def sample(self, prompt: str, label: Any, response: str, *, finished: bool) -> Sample:
        """One sample whose response is known already.

        Args:
            prompt: The templated prompt.
            label: As in `samples`.
            response: The response's text.
            finished: Whether it ended by itself.

        Raises:
            DataError: As in `samples`.
        """
        fields = fields_of(label)
        messages = fields.pop("messages", None)
        guidance = fields.pop("guidance", None)
        if guidance is not None and "domain" not in fields:
            fields["domain"] = self._domain_of(guidance)
        tools = tools_of(fields)[1]
        read = self._messages(prompt) if messages is None else ((tools,) if tools else ()) + parse_prompt(messages)
        return Sample(read, response, finished=finished, fields=fields)

    def whole(self, texts: Sequence[str], label: Any = None) -> list[Sample]:
        """Samples out of texts alone, where the trainer does not say which part of each is the prompt.

        Args:
            texts: Prompt and response of each, special tokens spelt out.
            label: As one of those of `samples`; it counts for all.

        Raises:
            DataError: As in `samples`; or the policy's tokenizer has no chat template, which says where a response
                begins.
        """
        return [self._whole(number, text, label) for number, text in enumerate(texts)]

    def _whole(self, number: int, text: str, label: Any) -> Sample:
        try:
            _check_text("text", text)
            reader = self._known_reader()
            if not reader.has_template:
                raise DataError(
                    "the policy's tokenizer has no chat template, which says where a response begins: start gdr serve "
                    "with the --policy-tokenizer of a model that has the trainer's template"
                )
            prompt, response, finished = reader.split(text, keep_lead=self._settings.plain)
            return self.sample(prompt, label, response, finished=finished)
        except DataError as error:
            raise DataError(f"item {number}: {error}") from None

    def _known_reader(self) -> RenderedPromptReader:
        if self._reader is None:
            raise DataError(
                "the reward does not know the policy's tokenizer, so it cannot tell the response from the prompt: "
                "start gdr serve with --policy-tokenizer NAME (or set GDR_POLICY_TOKENIZER)"
            )
        return self._reader

    def _sample(self, number: int, query: str, prompt: str, label: Any) -> Sample:
        try:
            for name, text in (("query", query), ("prompt", prompt)):
                _check_text(name, text)
            response, finished = self._known_reader().response(query, prompt, keep_lead=self._settings.plain)
            return self.sample(prompt, label, response, finished=finished)
        except DataError as error:
            raise DataError(f"item {number}: {error}") from None

    def _messages(self, prompt: str) -> Conversation:
        if self._settings.plain:
            return (Message(TEXT, prompt),)
        if self._reader is None:
            raise DataError("the policy's tokenizer is not known: the label must have the prompt as `messages`")
        if not self._reader.has_template:
            raise DataError(
                "the policy's tokenizer has no chat template, so no messages can be read out of the prompt: put them "
                "into the label as `messages`, or score text as it is (--plain, GDR_PLAIN=1)"
            )
        return self._reader.messages(prompt)

    def _domain_of(self, guidance: object) -> str:
        known = self._guidances()
        for domain, name in known.items():
            if name == guidance:
                return domain
        raise DataError(f"label: {unknown('guidance', guidance, set(known.values()))}; guidance.domains lists them")


def open_prompt_reader(settings: ServeSettings) -> RenderedPromptReader | None:
    """Open the policy's tokenizer as a reader of its rendered prompts; None where the settings name no tokenizer.

    Raises:
        ModelError: It cannot be opened.
        ChatError: Its chat template cannot be used.
    """
    if settings.policy_tokenizer is None:
        return None
    from gdr_plugin.models.local.source import open_tokenizer

    return prompt_reader_of(open_tokenizer(settings.policy_tokenizer), settings.policy_tokenizer)


def prompt_reader_of(tokenizer: PreTrainedTokenizerBase, name: str) -> RenderedPromptReader:
    """What reads a policy's texts.

    A base model's tokenizer, which has no chat template, still says where a response begins and how it ends; the
    messages are then the label's.

    Args:
        tokenizer: The policy's tokenizer.
        name: The policy's folder or hub id, whose generation config says what it stops at; or an empty text.

    Raises:
        ChatError: Its chat template cannot be used.
    """
    from gdr_plugin.models.text.opening import generation_stops
    from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

    template = None if tokenizer.chat_template else "plain"
    return RenderedPromptReader(tokenizer, template, stops=generation_stops(name) if name else ())


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise DataError(f"the {name} must be text, not {type(text).__name__}")
    problem = text_problem(text)
    if problem is not None:
        raise DataError(f"the {name} {problem}")


def fields_of(label: Any) -> dict[str, Any]:
    """The fields that a label stands for: a mapping's own, else the field `label`; none for an empty one."""
    if isinstance(label, Mapping):
        # Table readers fill the keys that a row lacks with null.
        return {str(name): value for name, value in label.items() if value is not None}
    return {} if label is None or label == "" else {"label": label}
