"""slime and miles: the guided density ratio as `--custom-rm-path gdr_slime.reward`.

The environment says which reward; see `gdr_plugin.adapters.backend`. Importing this package imports neither slime nor
torch. `routes` is slime's other way, its remote dialect of `gdr serve`. Contract: slime's source of August 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from gdr_plugin.adapters.backend import Backend, open_backend
from gdr_plugin.adapters.rendered import RenderedSamples, prompt_reader_of
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

__all__ = ["reward"]


async def reward(args: Any, sample: Any, **others: object) -> Any:
    """The reward of one sample; with `--group-rm`, those of a list of samples, in one request.

    Args:
        args: slime's arguments; `hf_checkpoint` names the policy's tokenizer, unless GDR_POLICY_TOKENIZER does.
        sample: slime's sample, or a list of them. Its `metadata` (such as `domain`) and `label` become fields.
        **others: What slime adds; not used.

    Returns:
        A number, or a list of numbers.

    Raises:
        GDRError: The reward cannot be had. The training ends with its message.
    """
    backend = open_backend()
    name = backend.settings.policy_tokenizer or args.hf_checkpoint
    given = sample if isinstance(sample, Sequence) else [sample]
    rewards = await backend.ask([_sample(item, backend, name) for item in given])
    return rewards if given is sample else rewards[0]


def _sample(given: Any, backend: Backend, tokenizer: str) -> Sample:
    """Slime's sample as ours. Its status says what was cut; its text keeps the special tokens, its end among them."""
    reader, rendered = _reader(backend, tokenizer)
    ids = list(given.tokens)
    begin = len(ids) - given.response_length
    text, ended = reader.response_of_ids(ids[:begin], ids[begin:])
    # A response that ends by a stop string has no token for it.
    finished = getattr(given.status, "value", given.status) == "completed" or ended
    fields = {**({} if given.label is None else {"label": given.label}), **(given.metadata or {})}
    if isinstance(given.prompt, str):
        return rendered.sample(given.prompt, fields, text, finished=finished)
    return Sample(parse_prompt(list(given.prompt)), text, finished=finished, fields=fields)


@cache
def _reader(backend: Backend, tokenizer: str) -> tuple[RenderedPromptReader, RenderedSamples]:
    from gdr_plugin.models.local.source import open_tokenizer

    reader = prompt_reader_of(open_tokenizer(tokenizer), tokenizer)
    return reader, RenderedSamples(backend.settings, reader, backend.guidances)
