"""The settings of a model in gdr.yaml: all that a backend is given when it opens one."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LongInput = Literal["error", "keep_end"]
SERVER_SCHEMES: Final = ("openai", "sglang", "vllm")
"""The schemes of models that a server computes."""


class SettingsModel(BaseModel):
    """A mapping of gdr.yaml: unknown keys are refused, and an instance cannot be changed."""

    # The docstrings below the fields become descriptions: `gdr init` writes them into the file.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerSection(SettingsModel):
    """How a server is asked (`vllm:`, `sglang:` and `openai:`)."""

    concurrency: int = Field(default=16, ge=1, le=1024)
    """Requests in flight at once, over all of the model's addresses."""
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Seconds that one answer may take. A request that takes longer is not sent again: the server may still be busy
    with it."""
    tries: int = Field(default=5, ge=1)
    """How often a request is sent where the connection fails or the server answers 429 or 5xx, to another address where
    there is one. Pauses double from half a second; a server's Retry-After is waited for."""
    api_key_env: str = Field(default="GDR_API_KEY", min_length=1)
    """The environment variable that holds the server's API key, such as OPENAI_API_KEY. The key itself never belongs
    into gdr.yaml."""


class ModelSpec(SettingsModel):
    """One model: where it is and how it is loaded."""

    model: str = Field(min_length=1)
    """A hub id (`hf:org/name` or `org/name`), a folder, a `.gguf` file, a server (`vllm:http://host:8000/name`,
    `sglang:...`, `openai:...`), or `scheme:rest` of another backend."""
    adapter: str | None = Field(default=None, examples=["./adapter"])
    """PEFT adapter on top of `model`: a folder or a hub id; on a server the name that it has there. Models that share
    `model` share one set of weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on CPU; on CUDA what the checkpoint says."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:1`."""
    device_map: str | dict[str, int | str] | None = Field(default=None, examples=["auto"])
    """Sharding through accelerate, as in transformers' `from_pretrained` (`auto`, `balanced`, a mapping)."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that hold each layer together and compute it at once, for a model that does not fit on one. Each gets a
    process of its own."""
    revision: str | None = Field(default=None, examples=["main"])
    """Branch, tag or commit of a hub model. Of a server's model, which does not tell: what you know of its weights."""
    tokenizer: str | None = Field(default=None, examples=["org/name"])
    """Folder or hub id of the tokenizer. Default: what lies beside the adapter (trainers save it there), else the
    model's."""
    chat_template: str | None = Field(default=None, examples=["plain"])
    """`plain` for our plain-text template (base models), or the path of a Jinja file. Default: the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, examples=[{"enable_thinking": False}])
    """Variables that the chat template reads, such as `enable_thinking`, `thinking` or `reasoning_effort`."""
    end_of_turn_token: str | None = Field(default=None, min_length=1, examples=["<|im_end|>"])
    """The token that ends an assistant turn. Default: what the template writes, else the model's own EOS."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    server: ServerSection | None = Field(default=None, examples=[{"concurrency": 32}])
    """How a server is asked, where `model` names one."""

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if self.server is not None and self.scheme in ("hf", "fake"):
            raise ValueError(f"server: {self.model} is computed in this process: remove the key, or name a server")
        if self.tensor_parallel_size > 1:
            if self.device_map is not None:
                raise ValueError("tensor_parallel_size and device_map are two ways to spread a model: keep one of them")
            if self.adapter is not None and not self.on_server:
                raise ValueError(
                    "tensor_parallel_size: an adapter cannot be put on a model that is split: merge it into its base "
                    "(peft: merge_and_unload) and give the merged folder as `model`"
                )
        return self

    @property
    def on_server(self) -> bool:
        """Whether a server computes the model, so that neither weights nor adapter are files here."""
        return self.scheme in SERVER_SCHEMES

    @property
    def scheme(self) -> str:
        """The backend's scheme: what stands before the first colon, `hf` when there is none."""
        head, colon, _ = self.model.partition(":")
        return head if colon and head.isidentifier() and len(head) > 1 else "hf"

    @property
    def target(self) -> str:
        """What follows the scheme: the hub id, path or address."""
        return self.model[len(self.scheme) + 1 :] if self.model.startswith(self.scheme + ":") else self.model


class Limits(SettingsModel):
    """Limits of length and memory, and what happens to an input that is too long."""

    max_length: int | None = Field(default=None, ge=8, examples=[4096])
    """Tokens of context and response together; default: the model's own limit."""
    max_response: int = Field(default=2048, ge=1)
    """Tokens kept free for the response when a prompt is cut; at most half of `max_length` is kept."""
    long_input: LongInput = "error"
    """`error`: the sample is not scored, with the reason. `keep_end`: the start of the prompt (never the guidance) is
    left out until it fits, and the score says so."""
    token_budget: int | None = Field(default=None, ge=1, examples=[2048])
    """Tokens in one forward pass; default: 2,048 on CPU; on CUDA what half of the free memory holds, at most 16,384."""
    kv_cache_mb: int = Field(default=512, ge=0)
    """Memory for guidance kept between calls (keys and values), per model, in MiB."""
