"""For OpenRLHF's `--train.agent_func_path` (0.9.1 and newer): one turn of generation, rewarded from token ids.

`gdr path openrlhf agent` prints this file's path. Unlike `--reward.remote_url` it knows where the response begins and
whether it was cut off, and an error ends the training with its own message. The policy's tokenizer comes from OpenRLHF;
environment variables say which reward (see `gdr_plugin.adapters.backend`).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from openrlhf.utils.agent import SingleTurnAgentExecutor

from gdr_openrlhf.backend import answer, dialect_of, from_environment
from gdr_openrlhf.dialect import Dialect
from gdr_plugin.adapters.rendered import prompt_reader_of
from gdr_plugin.models.text.rendered_prompt import RenderedPromptReader

_THREADS: Final = 256
"""The most samples that wait for their reward at once: an engine has more sequences than asyncio's own pool threads."""


class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
    """Generates one response and rewards it.

    Raises:
        ConfigError: The environment does not say which reward.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._backend = from_environment()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="gdr-agent")
        self._opening = threading.Lock()
        self._opened: tuple[RenderedPromptReader, Dialect] | None = None

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Generate as OpenRLHF does, then reward the response.

        Args:
            prompt: The templated prompt.
            label: Any value; see `gdr_plugin.adapters.rendered.RenderedSamples.samples`.
            sampling_params: Passed on.
            max_length: Passed on.
            hf_tokenizer: The policy's tokenizer.
            llm_engine: Passed on.
            images: None: a reward of texts cannot see them.

        Returns:
            What OpenRLHF's executor returns, with `reward`, `scores` and `extra_logs`.

        Raises:
            GDRError: The reward cannot be had. It is not swallowed: the training ends here.
            ValueError: There are images.
        """
        if images:
            raise ValueError("gdr rewards texts only: this prompt has images")
        # Releases before 0.10 know no images.
        output: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine
        )
        loop = asyncio.get_running_loop()
        output.update(await loop.run_in_executor(self._pool, self._rewarded, prompt, label, output, hf_tokenizer))
        return output

    def _rewarded(self, prompt: str, label: Any, output: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
        reader, dialect = self._open(tokenizer)
        begin, end = output["action_ranges"][0]
        ids = output["observation_tokens"]
        response, ended = reader.response_of_ids(ids[:begin], ids[begin:end], keep_lead=self._backend.settings.plain)
        # A response that ends by a stop string has no token for it, but was not cut either. Releases before 0.10 do not
        # say what was cut.
        finished = ended or not output.get("truncated", True)
        sample = dialect.sample(prompt, label, response, finished=finished)
        found = answer(self._backend, dialect, [sample])
        return {
            "reward": found["rewards"][0],
            "scores": found["scores"][0],
            "extra_logs": {key: values[0] for key, values in found["extra_logs"].items()},
        }

    def _open(self, tokenizer: Any) -> tuple[RenderedPromptReader, Dialect]:
        """The reader of the policy's rendered prompts and the dialect that uses it, made at the first call.

        Every call brings a new copy of the same tokenizer.
        """
        with self._opening:
            if self._opened is None:
                name = self._backend.settings.policy_tokenizer or getattr(tokenizer, "name_or_path", None)
                reader = prompt_reader_of(tokenizer, name or "")
                self._opened = reader, dialect_of(self._backend, reader)
            return self._opened
