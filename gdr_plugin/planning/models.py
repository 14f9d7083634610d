"""What a model's configuration says of its size: weights, the bytes they take, what a token costs. Loads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdr_plugin.api.errors import ChatError, ConfigError, ModelError
from gdr_plugin.api.settings import Limits, ModelSpec
from gdr_plugin.models.local.packages import check_packages
from gdr_plugin.planning.flops import Costs, attention_layers, head_widths

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from gdr_plugin.models.text.chat import Chat

__all__ = ["Descriptions", "PlannedModel", "open_planned"]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k")
_NO_WEIGHTS = ("fake",)
_SERVER_NAME = re.compile(r"^.*://[^/]+/(?:v1/)?")


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """One model, as far as a plan needs to know it."""

    name: str
    """As the user wrote it."""
    base: str
    """What decides whether two models share weights."""
    adapter: str | None
    served: bool
    """Whether gdr.yaml asks a server for it."""
    dtype: str
    parameters: int
    """All of them, tied ones once."""
    active: int
    """Weights of linear layers before the head that one token is multiplied with: of experts, those that are chosen."""
    adapter_parameters: int
    weight_bytes: int
    """Memory of the weights."""
    layers: int
    attention_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    kv_bytes: int
    """Keys and values of one token."""
    costs: Costs
    length: int | None
    """Tokens that the model was built for; None where it does not say."""
    chat: Chat | None
    """Counts tokens; None where no tokenizer could be opened."""
    notes: tuple[str, ...]
    """What had to be assumed, or should be known."""


class Descriptions:
    """Configurations and tokenizers of models, each read once."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[PreTrainedConfig, Callable[[], PreTrainedTokenizerBase]]] = {}

    def of(self, spec: ModelSpec) -> tuple[PreTrainedConfig, Callable[[], PreTrainedTokenizerBase]]:
        """A model's configuration, and a function that opens its tokenizer; see `describe`."""
        from gdr_plugin.models.local.source import describe

        key = spec.target, spec.revision, spec.tokenizer
        if key not in self._known:
            self._known[key] = describe(spec)
        return self._known[key]


def open_planned(spec: ModelSpec, limits: Limits, *, on_cpu: bool, known: Descriptions | None = None) -> PlannedModel:
    """Read a model's configuration and count.

    Args:
        spec: The model as gdr.yaml names it, on a server or not.
        limits: For its chat format.
        on_cpu: Whether it is to run on CPU cores, where `dtype: auto` means float32.
        known: What was read of other models.

    Raises:
        ConfigError: It has no configuration that could be read; the message says what to give.
        ModelError: The same, of a model that is no server's.
        MissingDependencyError: A package of the extra `local` is missing.
    """
    check_packages("to plan: the model is built without weights, and counted")
    import torch

    from gdr_plugin.models.local.device import dtype_name
    from gdr_plugin.models.local.source import empty_model

    place, served = _described_by(spec)
    try:
        config, tokenizer = (known or Descriptions()).of(place)
    except ModelError as error:
        if not served:
            raise
        raise ConfigError(
            f"{spec.model}: the plan needs the model's configuration ({error}): set `tokenizer:` beside it to the hub "
            "id or folder of the model that the server runs"
        ) from error
    called = _shown(spec.model)
    text = config.get_text_config(decoder=True)
    if not getattr(text, "num_attention_heads", None) or not getattr(text, "vocab_size", None):
        raise ModelError(f"{called}: its configuration ({type(text).__name__}) has no attention heads: not planned")
    notes = []
    if served:
        notes.append(f"{called} is a server's: what runs without servers would be the same model loaded here")
    packed = place.target.endswith(".gguf")
    device = torch.device("cpu" if on_cpu else "cuda")
    # On a server nobody here can know the dtype: what the checkpoint says is what servers take.
    dtype = dtype_name(spec, device, None if packed else config)
    model = empty_model(config, trust_remote_code=spec.trust_remote_code)
    adapter = _adapter_parameters(spec, model) if spec.adapter else 0
    active, in_layers, total = _count(model, text)
    bits, what = (None, "") if packed else _bits(config)
    if what:
        notes.append(f"{called}: {what}")
    if packed:
        notes.append(f"{called}: a GGUF is unpacked into {dtype}")
    width = BYTES[dtype]
    weights = total * width if bits is None else round(in_layers * bits / 8) + (total - in_layers) * width
    keys, values = head_widths(text)
    kv_heads = text.num_attention_heads if getattr(text, "kv_lora_rank", None) else _kv_heads(text)
    attending = attention_layers(text)
    if getattr(text, "sliding_window", None):
        notes.append(f"{called}: attention is counted without its sliding window of {text.sliding_window:,} tokens")
    if attending < text.num_hidden_layers:
        notes.append(f"{called}: only the {attending} layers with attention are counted as such")
    chat, missing = _chat(place, tokenizer, config, limits)
    if missing:
        notes.append(f"{called}: {missing}; tokens are estimated as characters / 4")
    costs = Costs.of(text, active)
    return PlannedModel(
        name=f"{called} + {_shown(spec.adapter)}" if spec.adapter else called,
        base=f"{place.scheme}:{place.target}@{place.revision}:{dtype}",
        adapter=spec.adapter,
        served=served,
        dtype=dtype,
        parameters=total,
        active=active,
        adapter_parameters=adapter,
        weight_bytes=weights,
        layers=int(text.num_hidden_layers),
        attention_layers=attending,
        hidden=int(text.hidden_size),
        intermediate=_intermediate(model, text),
        heads=int(text.num_attention_heads),
        kv_heads=kv_heads,
        vocab=int(text.vocab_size),
        kv_bytes=attending * kv_heads * (keys + values) * width,
        costs=replace(costs, token=costs.token + 2.0 * adapter),
        length=getattr(text, "max_position_embeddings", None),
        chat=chat,
        notes=tuple(notes),
    )


def _shown(name: str) -> str:
    """A model's name; paths below the working folder are shown from there, as users write them."""
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else name


def _described_by(spec: ModelSpec) -> tuple[ModelSpec, bool]:
    """The spec of the files that describe a model, and whether it runs on a server."""
    if spec.scheme == "hf":
        return spec, False
    if spec.scheme in _NO_WEIGHTS:
        raise ConfigError(f"{spec.model}: a model without weights needs no plan: name real models")
    name = spec.tokenizer or _SERVER_NAME.sub("", spec.target)
    return spec.model_copy(update={"model": name, "tokenizer": None}), True


def _kv_heads(text: Any) -> int:
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)


def _count(model: PreTrainedModel, text: Any) -> tuple[int, int, int]:
    """Weights that a token is multiplied with before the head, those there are, and all of the model's."""
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is not None:
        tables.add(id(head.weight))
    experts = next((int(value) for name in _EXPERTS if (value := getattr(text, name, None))), 0)
    chosen = next((int(value) for name in _CHOSEN if (value := getattr(text, name, None))), experts)
    active = there = 0
    for name, weight in model.get_decoder().named_parameters():  # type: ignore[no-untyped-call]
        if weight.dim() < 2 or id(weight) in tables:
            continue
        there += weight.numel()
        # Newer releases keep a layer's experts in one tensor, older ones in a list of modules.
        of_experts = (weight.dim() == 3 and weight.shape[0] == experts) or re.search(r"\.experts\.\d", name)
        active += weight.numel() * chosen // experts if experts and of_experts else weight.numel()
    return active, there, sum(weight.numel() for weight in model.parameters())


def _intermediate(model: PreTrainedModel, text: Any) -> int:
    """The widest state between two linear layers of a block."""
    from torch import nn

    widths = [module.out_features for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]  # type: ignore[no-untyped-call]
    return max([*widths, int(getattr(text, "intermediate_size", None) or 0), int(text.hidden_size)])


def _adapter_parameters(spec: ModelSpec, model: PreTrainedModel) -> int:
    """Weights of a LoRA adapter, from its configuration."""
    from torch import nn

    from gdr_plugin.models.local.adapters import CONFIG

    assert spec.adapter is not None
    folder = Path(spec.adapter).expanduser()
    try:
        if folder.is_dir():
            path = folder / CONFIG
        else:
            from transformers.utils.hub import cached_file

            path = Path(str(cached_file(spec.adapter, CONFIG)))
        settings = json.loads(path.read_text(encoding="utf-8"))
        rank, targets = int(settings["r"]), settings["target_modules"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"adapter {spec.adapter!r}: its {CONFIG} cannot be read ({error})") from error

    def hit(name: str) -> bool:
        if isinstance(targets, str):
            return targets == "all-linear" or re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return sum(
        rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and hit(name)
    )


def _bits(config: PreTrainedConfig) -> tuple[float | None, str]:
    """Bits of a quantised checkpoint's weights in linear layers, None where it is not one, and what to say of it."""
    given: Any = getattr(config, "quantization_config", None)
    if given is None:
        return None, ""
    settings = given if isinstance(given, dict) else given.to_dict()
    method = str(settings.get("quant_method", "")).removeprefix("QuantizationMethod.").lower()
    bits: Any = settings.get("bits") or (
        4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    )
    if bits is None:
        bits = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4.25}.get(method)
    if bits is None:  # compressed-tensors
        groups = (settings.get("config_groups") or {}).values()
        found = [group["weights"]["num_bits"] for group in groups if isinstance(group.get("weights"), dict)]
        bits = max(found, default=None)
    if bits is None:
        return None, f"quantised ({method}) in a way that is not known here: its weights are counted unpacked"
    return float(bits), f"weights of linear layers have {bits:g} bits ({method}); operations are those of 16 bits"


def _chat(place: ModelSpec, tokenizer: Any, config: PreTrainedConfig, limits: Limits) -> tuple[Chat | None, str]:
    from gdr_plugin.models.local.source import longest_of
    from gdr_plugin.models.text.opening import open_chat

    try:
        return open_chat(tokenizer(), place, limits, longest=longest_of(config)), ""
    except (ModelError, ChatError) as error:
        return None, f"its tokens cannot be counted ({error})"
