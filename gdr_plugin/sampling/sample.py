"""On-policy responses: what a local model answers to the prompts.

Knows how prompts are put together into batches; `texts` knows the policy's chat template, `decode` draws the tokens. It
knows nothing of rewards or files. Each response has random numbers of its own, made from the seed, the row's id and the
sample's number: it depends neither on the other prompts nor on what ran before (beyond a batch's rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ConfigError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.api.types import Conversation
from gdr_plugin.sampling.sampler import Sampled, Sampling
from gdr_plugin.sampling.texts import Context, PolicyTexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PolicySampler", "Sampled", "Sampling"]


class PolicySampler:
    """Draws responses from a local model under its own chat template.

    Making one opens the tokenizer and configuration; the weights load at the first `sample`. A policy that is the base
    of one of the reward's models shares that model's weights.

    Args:
        spec: The policy.
        limits: Its greatest length; `max_response` tokens of it are kept for the response.
        batch: Responses drawn together; default: 32 on CPU, 64 elsewhere. Less where memory runs out.

    Raises:
        ConfigError: The policy is not a local model.
        ModelError: It does not exist, or its adapter does not fit.
    """

    def __init__(self, spec: ModelSpec, limits: Limits | None = None, *, batch: int | None = None) -> None:
        if spec.scheme != "hf":
            raise ConfigError(
                f"--policy {spec.model}: only local models (hub id, folder, .gguf) and servers (vllm:, sglang:, "
                "openai:) can be sampled; draw responses elsewhere and give them in the rows as `responses`"
            )
        if batch is not None and batch < 1:
            raise ConfigError(f"--policy-batch must be 1 or more, not {batch}")
        from gdr_plugin.models.local import open_local

        self._model = open_local(spec, limits)
        self._texts = PolicyTexts(self._model.chat, self._model.tokenizer)
        self._batch = batch

    @property
    def name(self) -> str:
        """The policy's name as the user wrote it."""
        return self._model.name

    @property
    def identity(self) -> str:
        """What comparable samples have in common: weights, adapter, dtype, tokenizer and template."""
        return self._model.identity

    def unload(self) -> None:
        """Give the weights' memory back; sampling again loads them again."""
        self._model.unload()

    def sample(
        self,
        prompts: Sequence[Conversation],
        ids: Sequence[str],
        sampling: Sampling,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Draw responses, batch by batch; see `Sampler.sample`.

        Raises:
            ModelError: The weights cannot be loaded, the logits are not finite, or one response does not fit in memory.
        """
        asked = [self._texts.asked(prompt, sampling.max_new_tokens) for prompt in prompts]
        contexts = {index: found[0] for index, found in enumerate(asked) if not isinstance(found, str)}
        results = [Sampled(reason=found) if isinstance(found, str) else Sampled() for found in asked]
        if contexts:
            with self._model.running() as model:
                ends = self._end_ids(model)
                size = self._batch or (32 if model.device.type == "cpu" else 64)
                drawing = _Drawing(model, contexts, ids, sampling, ends, size)
                drawing.run(progress)
            for index in contexts:
                rows = [drawing.drawn[index, number] for number in range(sampling.samples)]
                opened = asked[index][1]
                results[index] = Sampled(tuple(self._texts.response(row, ends, opened) for row in rows))
        return results

    def _end_ids(self, model: PreTrainedModel) -> frozenset[int]:
        """What ends a response: what template, tokenizer and gdr.yaml name, and what the model's makers list.

        A GGUF has no generation config of its own; its loaded model may have one.
        """
        listed = getattr(model.generation_config, "eos_token_id", None)
        return self._model.chat.stop_ids | frozenset([listed] if isinstance(listed, int) else listed or ())


@dataclass(slots=True)
class _Drawing:
    """The drawing of one call: prompts of similar length together, `size` responses at once."""

    model: PreTrainedModel
    contexts: Mapping[int, Context]
    ids: Sequence[str]
    sampling: Sampling
    ends: frozenset[int]
    size: int
    drawn: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """(Prompt, number of the response) -> its ids."""

    def run(self, progress: Callable[[int], None] | None) -> None:
        """Draw all responses; where memory runs out, go on with half as many at once."""
        import torch

        while batch := self._next():
            try:
                self._draw(*batch)
                if progress is not None:
                    progress(len(self.drawn) // self.sampling.samples)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise ModelError(
                        "the policy does not fit into memory with one response: lower --max-new-tokens, or set `load: "
                        "sequential` in gdr.yaml"
                    ) from error
                self.size = (self.size + 1) // 2
                torch.cuda.empty_cache()

    def _next(self) -> tuple[list[int], range] | None:
        """The next prompts and which of their responses; None when all are drawn."""
        total = self.sampling.samples
        longest_first = sorted(self.contexts, key=lambda index: (-len(self.contexts[index]), index))
        for index in longest_first:
            begun = next((number for number in range(total) if (index, number) not in self.drawn), total)
            if begun == total:
                continue
            numbers = range(begun, min(total, begun + self.size))
            if len(numbers) < total:  # one prompt's responses fill the batch, or a part of them is left
                return [index], numbers
            rest = [other for other in longest_first if (other, 0) not in self.drawn]
            return rest[: self.size // total], numbers
        return None

    def _draw(self, prompts: Sequence[int], numbers: range) -> None:
        import numpy as np

        from gdr_plugin.sampling.decode import decode, uniforms

        keys = [(prompt, number) for prompt in prompts for number in numbers]
        limit = self.sampling.max_new_tokens
        rows = decode(
            self.model,
            [self.contexts[prompt] for prompt in prompts],
            np.stack([uniforms(self.sampling.seed, self.ids[prompt], number, limit) for prompt, number in keys]),
            end_ids=self.ends,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
        )
        self.drawn.update(zip(keys, rows, strict=True))
