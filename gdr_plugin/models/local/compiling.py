"""Functions that torch compiles into one kernel at their first call.

Where it cannot, they run uncompiled, with a warning. Only for GPUs: on CPUs compiling gains nothing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

import torch

from gdr_plugin.api.errors import EngineWarning
from gdr_plugin.text import first_line

P = ParamSpec("P")
R = TypeVar("R")
_RECOMPILED = 128


class Fused(Generic[P, R]):
    """A function of tensors in one kernel.

    Args:
        function: Works on any device as it stands.
        what: What it does, for the warning.
        compiler: Makes the compiled function.
    """

    def __init__(
        self, function: Callable[P, R], what: str, compiler: Callable[[Callable[P, R]], Callable[P, R]] | None = None
    ) -> None:
        self._function, self._what = function, what
        self._compiler = compiler or _compiled
        self._compiled: Callable[P, R] | None = None
        self.failed: str | None = None
        """Why the function runs uncompiled; None: it does not."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's value."""
        if self.failed is not None:
            return self._function(*args, **kwargs)
        try:
            if self._compiled is None:
                self._compiled = self._compiler(self._function)
            return self._compiled(*args, **kwargs)
        except Exception as error:  # compilers fail in many ways: no C compiler here, an unsupported device, a bug
            if is_out_of_memory(error):
                raise
            self.failed, self._compiled = reason(error), None
        warnings.warn(
            f"{self._what} cannot be compiled here ({self.failed}): it runs uncompiled, which is slower",
            EngineWarning,
            stacklevel=2,
        )
        return self._function(*args, **kwargs)


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    # `fullgraph`: an error instead of torch going on uncompiled, which it would only log.
    return recompiled(torch.compile(function, dynamic=True, fullgraph=True))


def recompiled(function: Callable[P, R]) -> Callable[P, R]:
    """A compiled function that may be compiled more often than torch's eight times: by device, window and heads."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILED):
            return function(*args, **kwargs)

    return run


def reason(error: BaseException) -> str:
    """An error on one line, with its class: many of torch's say little by themselves."""
    return f"{type(error).__name__}: {first_line(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on CPU or on an accelerator."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory"))
