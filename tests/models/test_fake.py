from __future__ import annotations

import numpy as np
import pytest

from gdr_plugin.api.errors import ChatError
from gdr_plugin.api.models import LogprobModel
from gdr_plugin.api.settings import Limits
from gdr_plugin.api.types import Conversation, Message, TokenSpan
from gdr_plugin.models.fake import BOS, END, START, FakeModel

HELLO: Conversation = (Message("user", "Grüße?"),)
GUIDED: Conversation = (Message("system", "Be brief."), *HELLO)


def test_it_is_a_logprob_model() -> None:
    assert isinstance(FakeModel("a"), LogprobModel)
    assert FakeModel("a").name == "fake:a"


def test_values_are_pinned_so_that_stored_ones_stay_valid() -> None:
    model = FakeModel("a")
    [logprobs] = model.score([TokenSpan((BOS, 65), (66, 67, END))])
    np.testing.assert_allclose(logprobs, [-1.676609, -0.059597, -0.130156], atol=1e-6)
    assert logprobs.dtype == np.float32


def test_batching_and_order_do_not_matter() -> None:
    model = FakeModel("a")
    spans = [
        model.chat.span(c, r, end=e) for c in (HELLO, GUIDED) for r in ("", "Ja.", "日本語") for e in (True, False)
    ]
    together = model.score(spans)
    backwards = model.score(spans[::-1])[::-1]
    for span, first, second in zip(spans, together, backwards, strict=True):
        [alone] = FakeModel("a").score([span])
        assert first.shape == (len(span.response),)
        np.testing.assert_array_equal(first, alone)
        np.testing.assert_array_equal(first, second)


def test_values_are_plausible_log_probs() -> None:
    model = FakeModel("a")
    [logprobs] = model.score([model.chat.span(HELLO, "word " * 2000, end=True)])
    assert logprobs.max() <= -0.05
    assert logprobs.min() >= -8.0
    assert -2.2 < logprobs.mean() < -1.8
    assert len(np.unique(logprobs)) > 9900


def test_name_context_and_prefix_matter() -> None:
    a, b = FakeModel("a"), FakeModel("b")
    assert a.identity != b.identity
    assert a.identity == FakeModel("a").identity
    plain, guided = a.chat.span(HELLO, "Ja.", end=True), a.chat.span(GUIDED, "Ja.", end=True)
    assert not np.array_equal(a.score([plain])[0], b.score([plain])[0])
    assert not np.array_equal(a.score([plain])[0], a.score([guided])[0])
    first, second = a.score([a.chat.span(HELLO, "xz", end=False), a.chat.span(HELLO, "yz", end=False)])
    assert first[1] != second[1]


def test_rendering() -> None:
    span = FakeModel("a").chat.span((Message("system", "S"), Message("user", "U")), "ü", end=True)
    assert span.context == (
        *(BOS, START, *b"system\nS", END, 10),
        *(START, *b"user\nU", END, 10),
        *(START, *b"assistant\n"),
    )
    assert span.response == (*"ü".encode(), END)
    assert span.dropped == 0
    with pytest.raises(ChatError, match="no turns"):
        FakeModel("a").chat.span((), "x", end=True)


def test_counters() -> None:
    model = FakeModel("a")
    model.score([])
    model.score([TokenSpan((1,), (2, 3)), TokenSpan((1,), ())])
    assert (model.calls, model.scored_spans, model.scored_tokens) == (2, 2, 2)
    assert model.describe()["backend"] == "fake"
    model.unload()


def test_too_long_is_an_error_by_default() -> None:
    chat = FakeModel("a", Limits(max_length=64)).chat
    assert len(chat.span(HELLO, "x" * 20, end=False).context) < 44
    with pytest.raises(ChatError, match=r"limits\.max_length"):
        chat.span(HELLO, "x" * 50, end=False)


def test_keep_end_drops_the_start_of_the_first_user_turn() -> None:
    limits = Limits(max_length=100, max_response=20, long_input="keep_end")
    chat = FakeModel("a", limits).chat
    prompt = (Message("system", "keep me"), Message("user", "a" * 100 + "THE END"))
    span = chat.span(prompt, "short", end=True)
    whole = FakeModel("a").chat.span(prompt, "short", end=True)
    assert len(span.context) == 80
    assert span.dropped == len(whole.context) - 80
    text = bytes(i for i in span.context if i < 256)
    assert b"keep me" in text
    assert b"THE END" in text
    assert chat.span(prompt, "another", end=False).context == span.context
    with pytest.raises(ChatError, match="exceed"):
        chat.span(prompt, "x" * 21, end=False)
    with pytest.raises(ChatError, match="even without"):
        chat.span((Message("system", "s" * 100), Message("user", "u")), "x", end=False)
