"""Templated strings back to messages and responses, for trainers that send nothing else.

Knows one tokenizer and its chat template. Every reading is rendered again and compared with the text, so that what
comes back is what the template made the text of, or an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Final

from gdr_plugin.api.errors import ChatError, DataError
from gdr_plugin.api.types import Conversation, Message, ToolCall
from gdr_plugin.models.text.ends import find_end, stop_ids
from gdr_plugin.models.text.layout import TurnLayout
from gdr_plugin.models.text.reasoning import marks_in
from gdr_plugin.models.text.template import ChatTemplate
from gdr_plugin.models.text.template_turns import TemplateTurns
from gdr_plugin.models.text.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READINGS: Final = 64
"""Readings of one text that are rendered again; the first one nearly always fits."""
_CACHED_PROMPTS: Final = 512
_NEAR: Final = 64
"""Ids before a response that decoding may depend on."""
_TAIL: Final = 8
"""Characters of a prompt's end that must be left of it in a query."""


class RenderedPromptReader:
    """Reads what a tokenizer's chat template has written.

    What the text cannot tell:
      - A default system turn is the template's, not the user's: it is left out. A user's own system turn with the very
        same text reads the same; rendering gives the same text either way.
      - Where the template writes a system turn's text into a user turn without a mark of its own, it stays there.
      - Contents come back as the template shows them: trimmed where it trims, without old reasoning where it drops it.
      - Template marks that are spelt out in a content are read as turns; so did the policy's tokenizer.

    Safe to use from several threads.

    Args:
        tokenizer: The policy's tokenizer, with a `tokenizers` backend.
        template: As in `Chat`: `plain`, the path of a Jinja file, or Jinja text. None: the tokenizer's own.
        stops: The EOS ids of the policy's generation config, where it is known.

    Raises:
        ChatError: No template, or one that does not render a user turn; a tokenizer without fast backend.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None = None, *, stops: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, template)
        self.has_template = self._template.source != "plain"
        """Whether a chat template has written the prompts; without one no messages are read from them."""
        layout = self._layout = TurnLayout(self._template)
        tokens = self._tokens = Tokens(tokenizer, layout.markup)
        self._turns = TemplateTurns(self._template)
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        end = find_end(tokens, layout, eos=eos, stops=stops)
        known = stop_ids(tokens, layout, end, eos=eos, stops=stops)
        self._pads = frozenset([pad] if isinstance(pad, int) else ()) - known
        self._end_ids = known | self._pads
        self.ends = tuple(sorted({tokens.spelling((id,)) for id in self._end_ids}, key=len, reverse=True))
        """Spellings of the tokens that end a response: what the template writes behind an answer or before the next
        turn, EOS, those of the generation config, and padding: trainers pad behind the end, and some models stop with
        their padding token."""
        call = Message("assistant", "", "", (ToolCall("call", "{}", "abcdefghi"),))
        asked, answer = Message("user", "a"), Message("tool", "b", tool_call_id="abcdefghi", name="call")
        after = ((asked,), (asked, Message("assistant", "c"), answer), (asked, call, answer))
        headers = {layout.answer_after(turns)[0].add for turns in after}
        self._headers = sorted((header for header in headers if header and not marks_in(header)), key=len, reverse=True)
        """What a policy writes before an answer and the scoring template writes again, such as gpt-oss's channel."""
        self._before_end = tokens.spelling_behind_text(end.ids[:-1])
        self._padding = (*self.ends, *((str(tokenizer.bos_token),) if tokenizer.bos_token else ()))
        self._cached_messages = lru_cache(_CACHED_PROMPTS)(self._messages)
        self._cached_forms = lru_cache(_CACHED_PROMPTS)(self._forms)

    def messages(self, text: str, *, cut: bool = False) -> Conversation:
        """The messages of a rendered prompt.

        Args:
            text: The prompt with its generation prompt.
            cut: Whether the text may have lost its beginning. What is left of its first turn is kept if that is a
                user turn; the conversation starts with a user turn then.

        Returns:
            The conversation, which renders as the text; after a cut, as something that ends like it.

        Raises:
            DataError: The template cannot have written the text.
        """
        return self._cached_messages(text, cut)

    def response(self, query: str, prompt: str, *, keep_lead: bool = False) -> tuple[str, bool]:
        """The response in a text that a trainer decoded from the ids of prompt and response together.

        The query may differ from the prompt as decoding does: spaces that the tokenizer inserts, padding on either
        side, a beginning that was cut off because the prompt was too long.

        Args:
            query: Prompt and response, special tokens spelt out.
            prompt: The prompt as it was before tokenization.
            keep_lead: Whether white space that the template puts in front of an answer stays there. Otherwise it is
                left out: whoever scores the response puts their own template's there.

        Returns:
            The response's text up to its end, and whether there was an end.

        Raises:
            DataError: The query does not go on from the prompt.
        """
        forms = self._cached_forms(prompt)
        starts = list(self._starts(query))
        begin = _after_whole(query, starts, forms)
        if begin is None:
            begin = next((at for at in (_after_cut(query, starts, form) for form in forms) if at is not None), None)
        if begin is None:
            raise DataError(
                "the query does not begin with its prompt or the end of it: is the policy tokenizer that was given "
                f"the one of the policy? (query {query[:60]!r}, prompt {prompt[:60]!r})"
            )
        return self._up_to_end(self._without_inserted_space(query[begin:], prompt), keep_lead)

    def split(self, text: str, *, keep_lead: bool = False) -> tuple[str, str, bool]:
        """Prompt and response in a text that holds both, where the trainer does not say where the response begins.

        It begins behind the last generation prompt before which the template can have written everything. A response
        that goes on with turns of its own, behind an end that the policy did not stop at, is read as its last turn.

        Args:
            text: Prompt and response, special tokens spelt out.
            keep_lead: As in `response`.

        Returns:
            The prompt as the template wrote it, the response's text up to its end, and whether there was an end.

        Raises:
            DataError: There is no such place.
        """
        starts = list(self._starts(text))
        for begin in self._turns.prompt_ends(text):
            for start in starts:
                if start < begin and self._can_be_prompt(text[start:begin]):
                    return (text[start:begin], *self._up_to_end(text[begin:], keep_lead))
        raise DataError(
            f"the text has no prompt that the template of the policy tokenizer can have written ({text[:60]!r}): is it "
            "the policy's tokenizer, and is its chat template the trainer's?"
        )

    def response_of_ids(
        self, prompt: Sequence[int], response: Sequence[int], *, keep_lead: bool = False
    ) -> tuple[str, bool]:
        """The response's text from token ids.

        Args:
            prompt: Ids of the prompt, as the policy saw them.
            response: Ids that the policy generated, its end included.
            keep_lead: As in `response`.

        Returns:
            The text up to its end, and whether there was an end.
        """
        stop = next((at for at, id in enumerate(response) if id in self._end_ids), None)
        if stop is None or response[stop] in self._pads:
            # Models stop at control tokens that neither template nor tokenizer names, and padding may follow.
            last = (len(response) if stop is None else stop) - 1
            if last >= 0 and response[last] in self._tokens.control_ids:
                stop = last
        near = list(prompt)[-_NEAR:]  # decoding depends on what stands before, but not on what stands far before
        head, both = self._decode(near), self._decode([*near, *list(response)[:stop]])
        text = both[len(head) :] if both.startswith(head) else self._decode(list(response)[:stop])
        return self._tidy(text, stop is not None, keep_lead)

    def _can_be_prompt(self, text: str) -> bool:
        try:
            self.messages(text)
        except DataError:
            return False
        return True

    def _messages(self, text: str, cut: bool) -> Conversation:
        if not self._turns.fits_end(text):
            raise DataError(
                f"the prompt does not end as the template of the policy tokenizer ends one ({text[-60:]!r}): is it the "
                "policy's tokenizer, and was the chat template applied?"
            )
        found = [turns for turns in islice(self._turns.readings(text), _READINGS) if self._renders(turns, text)]
        if found:
            best = min(found, key=self._unlikeliness)
            if self._unlikeliness(best)[0]:
                raise DataError(
                    f"marks of the chat template stand inside a turn of this prompt ({text[:60]!r}), as of a call: "
                    "its turns cannot be told apart; send the messages in the label (`messages`)"
                )
            return best
        if cut:
            for turns in self._turns.tails(text):
                first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
                if first is not None and self._ends_like(turns[first:], text):
                    return turns[first:]
        raise DataError(
            f"the template of the policy tokenizer cannot have written this prompt ({text[:60]!r}): it was rendered by "
            "another template or with other options; send the messages in the label (`messages`)"
        )

    def _unlikeliness(self, turns: Conversation) -> tuple[bool, bool, int]:
        """Readings that render alike: first those without the template's marks in a turn, then those of few turns."""
        marks = (*self._tokens.control, *self._turns.marks)
        marked = any(spelling in turn.content for turn in turns for spelling in marks)
        headed = any(word in turn.content for turn in turns for word in self._turns.headers)
        return marked, headed, len(turns)

    def _renders(self, turns: Conversation, text: str) -> bool:
        try:
            again = self._template.render(turns)
        except ChatError:
            return False
        return self._turns.same(again, text)

    def _ends_like(self, turns: Conversation, text: str) -> bool:
        try:
            again = self._template.render(turns)
        except ChatError:
            return False
        return text.endswith(again[again.find(turns[0].content) :]) if turns[0].content else False

    def _forms(self, prompt: str) -> tuple[str, ...]:
        """The prompt as decoding its ids shows it, and as it was."""
        return tuple(dict.fromkeys((self._decode(self._tokens.encode(prompt).ids), prompt)))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _starts(self, query: str) -> Iterator[int]:
        """Where the prompt may start: at the beginning, or behind any of the padding tokens there."""
        at = 0
        yield at
        while True:
            while at < len(query) and query[at].isspace():
                at += 1
            mark = next((one for one in self._padding if query.startswith(one, at)), None)
            if mark is None:
                return
            at += len(mark)
            yield at

    def _without_inserted_space(self, text: str, prompt: str) -> str:
        """The text without the space that decoding puts behind a control token, where the tokenizer does so."""
        if not text.startswith(" ") or text.startswith("  "):
            return text
        near = self._tokens.encode(prompt).ids[-_NEAR:]
        if not near:
            return text
        head = self._decode(near)
        again = self._decode([*near, *self._tokens.continuation(text[1:] or "a", near[-1])])
        return text[1:] if again.startswith(head + " ") else text

    def _up_to_end(self, text: str, keep_lead: bool) -> tuple[str, bool]:
        places = {spelling: at for spelling in self.ends if (at := text.find(spelling)) >= 0}
        first = min(places, key=lambda spelling: places[spelling], default=None)
        if first is not None:
            text = text[: places[first]]
        if first is None or self._tokens.id_of(first) in self._pads:
            # Models stop at control tokens that neither template nor tokenizer names, and padding may follow.
            shown = text if first is None else text.rstrip(" ")
            last = next((spelling for spelling in self._tokens.control if shown.endswith(spelling)), None)
            if last is not None:
                return self._tidy(shown[: -len(last)], True, keep_lead)
        return self._tidy(text, first is not None, keep_lead)

    def _tidy(self, text: str, finished: bool, keep_lead: bool) -> tuple[str, bool]:
        if not keep_lead:
            header = next((header for header in self._headers if text.startswith(header)), "")
            text = text.removeprefix(header).removeprefix(self._layout.lead)
        # The end of turn brings what the template writes before its last token; a cut response may end inside a
        # character.
        return (text.removesuffix(self._before_end), True) if finished else (text.rstrip("\ufffd"), False)


def _after_whole(query: str, starts: Sequence[int], forms: Sequence[str]) -> int | None:
    """Where the whole prompt ends in the query: exactly, else but for white space."""
    for start in starts:
        for form in forms:
            if query.startswith(form, start):
                return start + len(form)
    for start in (*starts[:-5:-1], 0):  # the last one may be behind the prompt's own BOS
        for form in forms:
            if (end := _aligned(query, start, form)) is not None:
                return end
    return None


def _aligned(query: str, at: int, form: str) -> int | None:
    """Where `form` ends in the query when white space is left out of the comparison; None when it is not there."""
    for char in form.rstrip():
        if char.isspace():
            continue
        while at < len(query) and query[at].isspace():
            at += 1
        if at == len(query) or query[at] != char:
            return None
        at += 1
    trailing = form[len(form.rstrip()) :]
    return at + len(trailing) if query.startswith(trailing, at) else at


def _after_cut(query: str, starts: Sequence[int], form: str) -> int | None:
    """Where the end of the prompt ends in a query that starts in the middle of it; the longest such piece."""
    start = starts[-1]
    while query.startswith("\ufffd", start):  # the cut went through a character
        start += 1
    tail = form[-_TAIL:]
    at = query.rfind(tail)
    while at >= start:
        end = at + len(tail)
        if form.endswith(query[start:end]):
            return end
        at = query.rfind(tail, 0, end - 1)
    return None
