"""Log-probs from final states: the target's logit minus the log-sum-exp over the vocabulary, in float32.

The vocabulary is processed in blocks, so that the logits of all rows never exist at once. Half-precision weights are
used as they are: a GPU's product gives float32 logits; elsewhere each row's logits are computed relative to its
target's, so that only the difference is rounded. Knows nothing of where the states come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.models.local import cpu
from gdr_plugin.models.local.compiling import Fused, is_out_of_memory, reason

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_BLOCK_BYTES = {"cpu": 8 << 20}
_BLOCK_BYTES_OTHER = 256 << 20
_COLUMNS = 8192
Wide = Callable[[Tensor, Tensor], Tensor]
"""`(rows, in) x (out, in) -> (rows, out)` of half-precision matrices, in float32."""


@dataclass(frozen=True, slots=True)
class Transform:
    """What a model does to its logits after the projection: scaling, then soft-capping."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Transform:
        """Read it from a configuration by the names that transformers uses; `Head.of` notices unknown ones."""

        def read(*names: str) -> float | None:
            return next((float(v) for name in names if (v := getattr(config, name, None))), None)

        scale = (read("logit_scale", "lm_head_multiplier") or 1.0) / (read("logits_scaling") or 1.0)
        return cls(scale, read("final_logit_softcapping", "logits_soft_cap"))

    def __call__(self, logits: Tensor) -> Tensor:
        """Apply to float32 logits, in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)
        return logits

    @property
    def identity(self) -> bool:
        """Whether logits stay as they are."""
        return self.scale == 1.0 and self.cap is None


class Head:
    """A model's output projection.

    Args:
        module: The module that makes logits of states.
        transform: What is applied to the logits.
    """

    def __init__(self, module: nn.Module, transform: Transform) -> None:
        self._module = module
        self._transform = transform
        self._matrix: nn.Linear | None = None
        device = torch.device("cpu")
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and not module.weight.is_meta:
            self._matrix = module  # a plain matrix in memory, neither adapted, split nor offloaded: it may be read
            device = module.weight.device
        self._wide = wide_product(device)
        self._wide_is_right = False
        self._fold: Callable[[Tensor], Tensor] = _norm
        if device.type == "cuda":
            self._fold = Fused(_norm, "the log-sum-exp of the head's logits")

    @classmethod
    def of(cls, model: PreTrainedModel, decoder: nn.Module, probe: Tensor) -> Head | None:
        """The model's head, if states, projection and transform together give the model's own logits.

        Args:
            model: A causal language model.
            decoder: The part of the model that computes its final states.
            probe: A few token ids, `(1, tokens)`, on the input device.

        Returns:
            The head; None if the architecture does something else between states and logits.
        """
        module: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if module is None or decoder is model:
            return None
        head = cls(module, Transform.of(model.config.get_text_config(decoder=True)))
        expected = model(input_ids=probe, use_cache=False).logits[0].float()
        states = decoder(input_ids=probe, use_cache=False).last_hidden_state[0]
        got = head._transform(module(states.to(_device(module, states))).float()).to(expected.device)
        if got.shape != expected.shape:
            return None
        rounding = 1e-4 if states.dtype == torch.float32 else 2e-2
        close = (got - expected).abs().amax() <= rounding * (1 + expected.abs().amax())
        return head if bool(close) else None

    def logprobs(self, states: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Log-probs of target tokens.

        Args:
            states: Final states, `(states, width)`.
            rows: Which state scores each target, `(targets,)`; every state scores at least one.
            targets: Token ids, `(targets,)`.

        Returns:
            Natural-log probabilities, `(targets,)`, float32, on the head's device.
        """
        device = _device(self._module, states)
        states, rows, targets = states.to(device), rows.to(device), targets.to(device)
        if self._matrix is None:
            return self._through_module(states, rows, targets)
        weight, bias = self._matrix.weight, self._matrix.bias
        raw = _target_logits(states, rows, targets, weight, bias)
        reference = torch.zeros(len(states), dtype=torch.float32, device=device)
        wide = self._wide_product(states, weight)
        if wide is not None:
            return self._transform(raw) - self._wide_logsumexp(states, weight, bias, wide)[rows]
        if states.dtype != torch.float32:
            reference[rows] = raw
        norm = self._logsumexp(states, reference, weight, bias)
        if self._transform.identity:
            return (raw - reference[rows]) - norm[rows]
        return self._transform(raw) - norm[rows]

    def _wide_product(self, states: Tensor, weight: Tensor) -> Wide | None:
        """The device's product with float32 results, once it has given the right ones; None: there is none."""
        if self._wide is None or states.dtype == torch.float32:
            return None
        if not self._wide_is_right:
            some, few = states[:16], weight[:64]
            try:
                got, expected = self._wide(some, few), some.float() @ few.float().T
                off = float((got - expected).abs().amax() / (1 + expected.abs().amax()))
                why = None if off <= 2e-3 and got.dtype == torch.float32 else f"{off:.2g} off, in {got.dtype}"
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                why = reason(error)
            if why is not None:
                self._wide = None
                warnings.warn(
                    f"products of half-precision matrices with float32 results are not used in the head: {why}; it "
                    "goes on with more columns instead, which is slower and as exact",
                    EngineWarning,
                    stacklevel=2,
                )
                return None
            self._wide_is_right = True
        return self._wide

    def _wide_logsumexp(self, states: Tensor, weight: Tensor, bias: Tensor | None, wide: Wide) -> Tensor:
        """Log-sum-exp of each state's transformed logits, whose products come in float32."""
        columns = min(_COLUMNS, len(weight))
        step = max(1, _BLOCK_BYTES.get(states.device.type, _BLOCK_BYTES_OTHER) // (4 * columns))
        found = []
        for start in range(0, len(states), step):
            norm: Tensor | None = None
            for column in range(0, len(weight), columns):
                logits = wide(states[start : start + step], weight[column : column + columns])
                if bias is not None:
                    logits += bias[column : column + columns].float()
                part = self._fold(self._transform(logits))
                norm = part if norm is None else torch.logaddexp(norm, part)
            assert norm is not None
            found.append(norm)
        return torch.cat(found)

    def _logsumexp(self, states: Tensor, reference: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Log-sum-exp of each state's transformed logits; minus its reference where nothing transforms them."""
        columns = min(_COLUMNS, len(weight))
        step = max(1, _BLOCK_BYTES.get(states.device.type, _BLOCK_BYTES_OTHER) // (4 * columns))
        half = states.dtype != torch.float32
        if half:
            states = torch.cat([states, _split(-reference, states.dtype)], dim=1)
        top = torch.full_like(reference, -torch.inf)
        total = torch.zeros_like(reference)
        for column in range(0, len(weight), columns):
            block = weight[column : column + columns]
            if half:
                block = torch.cat([block, block.new_ones(len(block), _SPLIT)], dim=1)
            for start in range(0, len(states), step):
                cut = slice(start, start + step)
                logits = cpu.product(states[cut], block).float()
                if bias is not None:
                    logits += bias[column : column + columns].float()
                if not self._transform.identity:
                    logits = self._transform(logits.add_(reference[cut, None]) if half else logits)
                new = torch.maximum(top[cut], logits.amax(1))
                sums = logits.sub_(new[:, None]).mul_(cpu.LOG2_E).exp2_().sum(1)
                total[cut] = total[cut] * (top[cut] - new).exp_() + sums
                top[cut] = new
        return top + total.log_()

    def _through_module(self, states: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """For heads that are more than a matrix (adapted, quantised, offloaded): full logits of few rows at once."""
        order = torch.argsort(rows, stable=True)
        result = torch.empty(len(targets), dtype=torch.float32, device=states.device)
        counts = torch.bincount(rows, minlength=len(states)).tolist()
        step, start, place = 64, 0, 0
        while start < len(states):
            many = sum(counts[start : start + step])
            mine = order[place : place + many]
            logits = self._transform(self._module(states[start : start + step]).float())
            result[mine] = select(logits, rows[mine] - start, targets[mine])
            start, place = start + step, place + many
        return result


def wide_product(device: torch.device) -> Wide | None:
    """A device's product of half-precision matrices with float32 results: nothing is rounded behind the sum."""
    if device.type != "cuda":
        return None
    return lambda x, weight: torch.mm(x, weight.T, out_dtype=torch.float32)


def _norm(logits: Tensor) -> Tensor:
    return torch.logsumexp(logits, dim=1)


def _target_logits(states: Tensor, rows: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each target's logit as a float32 dot product, whatever the weights' type."""
    logits = torch.empty(len(targets), dtype=torch.float32, device=states.device)
    step = max(1, (4 << 20 if states.device.type == "cpu" else 64 << 20) // states.shape[1])
    for start in range(0, len(targets), step):
        cut = slice(start, start + step)
        logits[cut] = (states[rows[cut]].float() * weight[targets[cut]].float()).sum(-1)
    return logits if bias is None else logits + bias[targets].float()


def select(logits: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of targets from full logits.

    Args:
        logits: `(rows, vocabulary)`, float32.
        rows: Which row scores each target.
        targets: Token ids.

    Returns:
        Natural-log probabilities, `(targets,)`.
    """
    return logits[rows, targets] - torch.logsumexp(logits, dim=-1)[rows]


_SPLIT = 8  # three are needed; a multiple of eight keeps matrix rows aligned


def _split(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Split float32 values into columns of a half-precision type that add up to them: `(values, 8)`."""
    columns = []
    for _ in range(3):
        column = values.to(dtype)
        columns.append(column)
        values = values - column.float()
    filled = torch.stack(columns, dim=1)
    return torch.cat([filled, filled.new_zeros(len(values), _SPLIT - 3)], dim=1)


def _device(module: nn.Module, states: Tensor) -> torch.device:
    """The device of a module's input: that of its weight, if it has one."""
    weight = getattr(module, "weight", None)
    return weight.device if isinstance(weight, Tensor) and not weight.is_meta else states.device
