"""Weights in memory: one set for all models that share a base, with adapters that are switched on during use.

Knows how transformers and peft load; nothing of tokens or log-probs. Torch's global state is not changed.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError

from gdr_plugin.api.errors import ModelError
from gdr_plugin.models.local.building import building, load_complete
from gdr_plugin.models.local.cpu import use_fast_linears
from gdr_plugin.models.local.lora import Active, run_in_place
from gdr_plugin.models.local.source import Source
from gdr_plugin.text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gdr_plugin.api.settings import ModelSpec

_shared: WeakValueDictionary[str, Weights] = WeakValueDictionary()


class Weights:
    """A loaded base model that several users may hold; it leaves memory with its last user.

    Args:
        model: In evaluation mode.
        owned: Whether nothing else uses the model: only then may forwards run in inference mode.
    """

    def __init__(self, model: PreTrainedModel, *, owned: bool = True) -> None:
        self.model = model
        self._owned = owned
        self.lock = threading.RLock()
        """Held while a forward runs and while adapters come and go."""
        self._peft: Any = None
        self._users: dict[str, int] = {}
        self._active = Active()
        self._in_place: set[str] = set()
        """Adapters that `self._active` alone switches on and off; peft has to switch the others."""
        self._on_by_peft: str | None = None
        self._running: list[str | None] = []
        """The adapters of the `running` blocks that are open, the innermost last."""

    def attach(self, folder: Path, digest: str) -> str:
        """Load an adapter in addition to those that are there; each is loaded once.

        Args:
            folder: A checked adapter.
            digest: The digest of its content.

        Returns:
            Its name, for `running` and `detach`.

        Raises:
            ModelError: peft cannot load it.
        """
        name = f"gdr_{digest}"
        with self.lock:
            if name not in self._users:
                try:
                    self._add(folder, name)
                except BaseException:
                    self._remove(name)  # what peft has added by then would stay on in the base
                    raise
            self._users[name] = self._users.get(name, 0) + 1
        return name

    def _add(self, folder: Path, name: str) -> None:
        from peft import PeftModel

        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise ModelError(
                f"adapter {str(folder)!r} cannot be put on a base that is partly offloaded by `device_map`: merge it "
                "into its base (peft: merge_and_unload) and give the merged folder as `model:`"
            )
        try:
            with building(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft and transformers about each other, and weights checked below
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(self.model, folder, name, low_cpu_mem_usage=True)
                else:
                    self._peft.load_adapter(folder, name, low_cpu_mem_usage=True)
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"adapter {str(folder)!r} cannot be loaded: {first_line(error)}") from error
        if any(parameter.is_meta and name in key for key, parameter in self.model.named_parameters()):
            raise ModelError(f"adapter {str(folder)!r} is not complete: it lacks weights that it names")
        self.model.train(False)
        if run_in_place(self.model, name, self._active):
            self._in_place.add(name)
        use_fast_linears(self.model)
        self._switch(None)

    def _remove(self, name: str) -> None:
        """Take an adapter that has no user left off the base, as far as it was added."""
        self._in_place.discard(name)
        if self._peft is None or name not in self._peft.peft_config:
            return
        if self._users:  # peft loses track if the active adapter is deleted: activate another first
            self._peft.set_adapter(next(iter(self._users)))
            self._peft.delete_adapter(name)
            self._switch(None)
        else:
            self._peft.base_model.unload()
            self._peft, self._on_by_peft = None, None

    def detach(self, name: str) -> None:
        """Release an adapter; its memory is freed with its last user."""
        with self.lock:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                self._remove(name)

    @contextmanager
    def running(self, adapter: str | None) -> Iterator[PreTrainedModel]:
        """The model, to this thread alone, ready for a forward.

        Args:
            adapter: A name from `attach`, or None for the base as it is.

        Yields:
            The causal language model, in evaluation mode, without autograd.
        """
        device = next(self.model.parameters()).device.type
        # Inference tensors must not get into buffers of a model that is being trained.
        gradless = torch.inference_mode() if self._owned else torch.no_grad()
        with self.lock, gradless, torch.autocast(device, enabled=False):
            self._running.append(adapter)
            training = [] if self._owned else [module for module in self.model.modules() if module.training]
            try:
                self._turn_on(adapter)
                for module in training:
                    module.training = False
                yield self.model
            finally:
                for module in training:
                    module.training = True
                self._running.pop()
                if self._running:  # this thread goes on in a block around this one
                    self._turn_on(self._running[-1])

    def _turn_on(self, adapter: str | None) -> None:
        self._active.adapter = adapter
        wanted = None if adapter in self._in_place else adapter
        if wanted != self._on_by_peft:
            self._switch(wanted)

    def _switch(self, adapter: str | None) -> None:
        tuner = self._peft.base_model
        if adapter is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self._peft.set_adapter(adapter)
        self._on_by_peft = adapter


def open_weights(spec: ModelSpec, source: Source) -> Weights:
    """Load a base model, or return the weights that are in memory already.

    Args:
        spec: How to load it.
        source: Where its files are.

    Returns:
        Weights that live as long as they are referenced.

    Raises:
        ModelError: They cannot be loaded.
    """
    key = repr((source.digest, source.path, source.revision, source.dtype, source.device, spec.device_map))
    with building():
        weights = _shared.get(key)
        if weights is None:
            weights = Weights(_load(spec, source, device_map=_place(spec, source)))
            _shared[key] = weights
        return weights


def open_part(spec: ModelSpec, source: Source) -> Weights:
    """Load this process's part of a model that `spec.tensor_parallel_size` processes hold together.

    torch.distributed has to be set up, and every one of the processes has to call it.

    Raises:
        ModelError: It cannot be loaded.
    """
    from transformers.distributed.configuration_utils import DistributedConfig

    return Weights(_load(spec, source, distributed_config=DistributedConfig(tp_size=spec.tensor_parallel_size)))


def _place(spec: ModelSpec, source: Source) -> Any:
    return spec.device_map or (None if source.device.type == "cpu" else {"": source.device})


def _load(spec: ModelSpec, source: Source, **placed: Any) -> PreTrainedModel:
    try:
        model = load_complete(
            source.path,
            revision=source.revision,
            dtype=source.dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            **placed,
        )
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model {spec.target!r} does not fit on {source.device}: try `dtype: bfloat16`, `device_map: auto`, or "
            "`load: sequential`"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {spec.target!r} cannot be loaded: {first_line(error)}") from error
    model.train(False)
    # transformers before 5.21 gives Gemma 2 PyTorch's own attention, which leaves out the soft-capping in silence.
    if getattr(model.config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")
    use_fast_linears(model)
    return model


def release() -> None:
    """Free the memory of weights without users, which adapters and hooks keep alive by reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
