"""The reward functions that TRL calls, and the order in which they read, score and log a batch.

Contract: TRL 1.14 to 1.16 (GRPO, RLOO; experimental AsyncGRPO, OnlineDPO, SDPO). TRL itself is not imported here.
"""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gdr_plugin.api.errors import ConfigError, DataError
from gdr_plugin.api.unscored import GivenUnscored, Unscored
from gdr_plugin.config.schema import Config
from gdr_plugin.text import line_of
from gdr_trl.completion import Completion, Reasoning, read_completion, row_fields
from gdr_trl.completion_reward import CompletionReward, Shaping, join
from gdr_trl.ends import CompletionTokens, Ends
from gdr_trl.metrics import LogExtra, LogMetric, log_batch
from gdr_trl.placement import outside_zero3
from gdr_trl.source import ChecksFields, ModelPair, Ratio, RewardSource
from gdr_trl.tools import Tool, Tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gdr_plugin.reward.remote import RemoteRatio

__all__ = ["AsyncGDRReward", "GDRReward"]

_unnamed = itertools.count(1)
_REMOTE_THREADS = 32
"""The most batches of one process that wait for a server at the same time."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What TRL passed to one call."""

    prompts: Sequence[object]
    completions: Sequence[object]
    completion_ids: Sequence[Sequence[int]] | None
    columns: dict[str, Any]
    log_extra: LogExtra | None
    log_metric: LogMetric | None
    trainer_state: object | None


class _Reward:
    """The common part of the sync and the async reward; see `GDRReward`."""

    def __init__(
        self,
        config: str | Path | Config | None = None,
        *,
        ratio: Ratio | None = None,
        remote: str | RemoteRatio | None = None,
        name: str | None = None,
        policy_tokenizer: str | PreTrainedTokenizerBase | None = None,
        reasoning: Reasoning = "score",
        tools: Sequence[Tool] | None = None,
        token_clip: float | None = None,
        length_penalty: float = 0.0,
        unscored: GivenUnscored = "none",
        **keywords: Unpack[ModelPair],
    ) -> None:
        self.__name__ = name or _next_name()
        if self.__name__ == "advantage":
            raise ConfigError("name: a reward must not be called 'advantage': TRL's table has such a column")
        self._source = RewardSource(config, ratio, remote, keywords)
        self._shaping = Shaping(token_clip, length_penalty)
        self._ends = Ends(policy_tokenizer)
        self._reasoning: Reasoning = reasoning
        self._tools = Tools(tools)
        self._unscored = Unscored.of(unscored, masks=True)
        self._begun = False
        """Whether a completion was ever scored."""
        self._in_vain = 0
        """Completions before the first that was scored."""
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_executor")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def ratio(self) -> Ratio:
        """What scores the samples, opened (not loaded) when first asked for.

        Raises:
            GDRError: It cannot be opened.
        """
        with self._lock:
            return self._source.open()

    def _run(self, call: _Call) -> list[float | None]:
        """Score one batch; may be called on any thread."""
        count = len(call.prompts)
        if len(call.completions) != count:
            raise DataError(f"{count} prompts but {len(call.completions)} completions: one a prompt is needed")
        started = time.perf_counter()
        completions = self._read(call)
        rewards = self._score(completions) if count else []
        seconds = time.perf_counter() - started
        given = [
            self._unscored.reward(reward.value, reward.reason, f"completion {place}")
            for place, reward in enumerate(rewards)
        ]
        self._begin(rewards)
        self._complain(rewards, call)
        log_batch(
            self.__name__,
            rewards,
            self.ratio.domains if count else (),
            seconds,
            log_metric=call.log_metric,
            log_extra=call.log_extra,
        )
        return given

    def _begin(self, rewards: Sequence[CompletionReward]) -> None:
        """Refuse a run that begins without any reward: it would go on to its end and learn nothing."""
        if self._begun or any(reward.value is not None for reward in rewards):
            self._begun = True
            return
        self._in_vain += len(rewards)
        if self._in_vain > 1 and self._unscored.action != "number":
            raise DataError(
                f"{self.__name__}: none of the first {self._in_vain} completions was scored, so that nothing would be "
                f"learnt: {rewards[0].reason}"
            )

    def _read(self, call: _Call) -> list[Completion]:
        fields = row_fields(call.columns, len(call.prompts))
        if not self._begun:
            self._check_domains(fields)
        tools = self._tools.find(fields, call.columns.get("environments"), call.log_metric or call.log_extra)
        rows = zip(call.prompts, call.completions, self._tokens(call), fields, tools, strict=True)
        completions = [
            read_completion(prompt, completion, tokens=tokens, fields=columns, reasoning=self._reasoning, tools=shown)
            for prompt, completion, tokens, columns, shown in rows
        ]
        blind = [completion for completion, shown in zip(completions, tools, strict=True) if shown is None]
        if self._tools.asks and any(sample.tool_calls for completion in blind for sample in completion.samples):
            self._warn(
                "completions call tools whose definitions this trainer does not say, so both models are asked without "
                "them: pass tools=, or a column `tools` of the data set"
            )
        return completions

    def _check_domains(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a column that names a domain which the reward does not know, as `gdr score` does."""
        ratio = self.ratio
        if isinstance(ratio, ChecksFields):
            for row in rows:
                ratio.check_fields(row)

    def _tokens(self, call: _Call) -> Sequence[CompletionTokens | None]:
        """Each completion's tokens, or None where nobody knows them or what ends a completion."""
        if call.completion_ids is not None:
            ends = self._ends.find(call.log_metric or call.log_extra)
            if ends is not None:
                return [CompletionTokens(ids, ends) for ids in call.completion_ids]
            self._warn(
                "this trainer does not say which token ends a completion, so all completions count as finished: pass "
                "policy_tokenizer= to tell those that were cut at the length limit"
            )
        return [None] * len(call.prompts)

    def _score(self, completions: Sequence[Completion]) -> list[CompletionReward]:
        ratio = self.ratio
        samples = [sample for completion in completions for sample in completion.samples]
        tokens = self._shaping.token_clip is not None
        if self._source.in_process:
            with self._lock, outside_zero3():
                scores = ratio.score(samples, tokens=tokens) if samples else []
        else:
            scores = ratio.score(samples, tokens=tokens) if samples else []
        left = iter(scores)
        rewards = []
        for completion in completions:
            if completion.samples:
                own = list(itertools.islice(left, len(completion.samples)))
                rewards.append(join(completion, own, ratio.reduction, self._shaping))
            else:
                rewards.append(CompletionReward(reason=completion.reason))
        return rewards

    def _complain(self, rewards: Sequence[CompletionReward], call: _Call) -> None:
        """Warn, once each, of what spoils a run without an error."""
        if rewards and self.ratio.reduction == "sum" and not self._shaping.length_penalty:
            self._warn(
                "the ratio is summed over tokens and has no bound, so a policy can raise it by length alone: set "
                "reward.reduction to mean or per_byte, or give a length_penalty, and watch gdr_hack"
            )
        missing = [reward.reason for reward in rewards if reward.value is None]
        if missing:
            self._warn(
                f"{len(missing)} of {len(rewards)} completions were not scored ({missing[0]}); their share is logged",
                key="not scored",
            )
            if call.trainer_state is not None and call.log_metric is None:
                self._warn("this trainer counts a completion that was not scored as one of reward 0")

    def _warn(self, message: str, key: str | None = None) -> None:
        if (key or message) not in self._warned:
            self._warned.add(key or message)
            warnings.warn(line_of(f"{self.__name__}: {message}"), UserWarning, stacklevel=2)


class GDRReward(_Reward):
    """A reward function for TRL: `log p_strong(y|x) - log p_weak(y|x)`, under the domain's guidance.

    For `reward_funcs` of GRPO, RLOO, OnlineDPO, SDPO and AsyncGRPO. The object can be pickled; the pickle holds no
    models. They load at the first call, on each rank's own GPU, and again in a process that the reward was sent to.
    Say what the reward is in one of four ways: a gdr.yaml, `ratio=`, `remote=`, or `strong=` and `weak=`.

    Args:
        config: Path of a gdr.yaml, or a configuration.
        ratio: A `GuidedDensityRatio` that exists already.
        remote: Address of a `gdr serve` (or a `RemoteRatio`), so that all ranks share one pair of models.
        name: Prefix of metrics and columns; default: `gdr`, `gdr_2` ... in the order of making.
        policy_tokenizer: The policy's tokenizer, hub id or folder: its end tokens tell finished completions from cut
            ones. GRPO and RLOO say it themselves; the other trainers do not.
        reasoning: Whether reasoning before the answer (`reasoning_content`, or a `<think>` block in the text) is
            scored with it, or dropped.
        tools: The tools that the policy is shown, as functions or definitions: both models are shown them, too. A
            row's own column `tools` goes first. None: those of the trainer (GRPO). An empty list: none.
        token_clip: Bound on each token's log-ratio in nats, so that no single token rules the reward. Needs two models
            with one tokenizer.
        length_penalty: Subtracted for each response token.
        unscored: What a completion gets that cannot be scored: `none`, which GRPO and RLOO leave out; `raise`; or a
            number. A first batch in which nothing was scored raises whatever is not a number.
        **keywords: `strong`, `weak`, `guidance`, `placement`, `exemplars`, `reduction`, `store`, `limits`, as in
            `GuidedDensityRatio.from_models`. With a gdr.yaml all but the first three replace its settings.

    Raises:
        ConfigError: Not exactly one source is given, or it or a keyword is wrong.

    Source: arXiv 2411.02481 for the ratio; clipping and length penalty are additions.
    """

    def __call__(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        trainer_state: object | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward completions.

        Args:
            prompts: Texts, or lists of messages; one for each completion.
            completions: Texts, or lists of messages of which the assistant's are scored.
            completion_ids: The completions' token ids: where the end token is missing, the completion was cut and the
                end of turn does not count. Without them all count as finished.
            trainer_state: The trainer's state; only used to tell trainers apart.
            log_extra: TRL's function that adds a column to the table of completions.
            log_metric: TRL's function that logs a number.
            **columns: Data set columns, a list each; routers see them (`field` reads `domain`).

        Returns:
            One finite number for each completion, or None where it was not scored.

        Raises:
            DataError: Lengths differ, or a message holds an image. Nothing in the first batch was scored, or it names a
                domain that is not configured; or a completion was not scored, and `unscored` is `raise`.
            ModelError: A model cannot be loaded, or the server cannot be reached.
        """
        call = _Call(prompts, completions, completion_ids, columns, log_extra, log_metric, trainer_state)
        return self._run(call)


class AsyncGDRReward(_Reward):
    """`GDRReward` as a coroutine, for GRPO, RLOO and AsyncGRPO: other rewards and rollouts go on meanwhile.

    It takes the same arguments. A batch is scored on a thread of the reward's own. Models in this process score one
    batch at a time; a server gets one request for each batch, and up to 32 batches at once.
    """

    _executor: ThreadPoolExecutor | None = None

    async def __call__(
        self,
        prompts: Sequence[object],
        completions: Sequence[object],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        trainer_state: object | None = None,
        log_extra: LogExtra | None = None,
        log_metric: LogMetric | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward completions; see `GDRReward.__call__`."""
        import asyncio

        call = _Call(prompts, completions, completion_ids, columns, log_extra, log_metric, trainer_state)
        if self._executor is None:
            workers = 1 if self._source.in_process else _REMOTE_THREADS
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix=self.__name__)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, call)


def _next_name() -> str:
    """A name that is the same on every rank, since it depends only on the order in which rewards are made."""
    number = next(_unnamed)
    return "gdr" if number == 1 else f"gdr_{number}"
