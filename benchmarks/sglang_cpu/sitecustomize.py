"""Lets SGLang start where there is no GPU: Python runs this in every process that has this folder in PYTHONPATH.

SGLang imports GPU packages that a text model on a CPU never calls. They are not installed beside it; here stand-ins
take their places.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import ClassVar
from unittest.mock import MagicMock

ABSENT = {
    "cutlass", "decord", "deep_gemm", "flash_attn", "flashinfer", "nvshmem", "quack", "sgl_kernel", "soundfile",
    "tilelang", "timm", "torch_memory_saver", "torchvision",
}  # fmt: skip


class StandIn(ModuleType):
    """A module that has whatever it is asked for."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins for what is absent, but not for transformers, which asks to learn what it can do."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name == "sglang.srt.lora.layers":
            _leave_memory_unpinned()
        if name.partition(".")[0] not in ABSENT or _asked_by_transformers():
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _leave_memory_unpinned() -> None:
    """SGLang's adapters ask for pinned memory, which torch refuses where there is nothing to copy it to."""
    import torch

    def unpinned(make):  # type: ignore[no-untyped-def]
        @functools.wraps(make)
        def made(*args, pin_memory=False, **options):  # type: ignore[no-untyped-def]
            return make(*args, **options)

        return made

    for name in ("arange", "empty", "tensor", "zeros"):
        setattr(torch, name, unpinned(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign, assignment]


def _asked_by_transformers() -> bool:
    frame = sys._getframe(2)
    for _ in range(12):
        if frame is None:
            return False
        if "/transformers/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


sys.meta_path.insert(0, Finder())
