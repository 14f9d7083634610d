"""Results on their way from the device: asked for at once, waited for when they are read.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from gdr_plugin.api.types import Logprobs


class Fetched:
    """One float for each of some rows' tokens, fetched by a single copy: the host waits for the device once, in `rows`.

    Args:
        values: All rows' values, `(tokens,)`, on any device.
        lengths: How many belong to each row.
    """

    def __init__(self, values: Tensor, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._done: torch.cuda.Event | None = None
        if values.device.type == "cuda":  # into pinned memory, or the copy itself would wait
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.cpu()

    def rows(self) -> list[Logprobs]:
        """One array a row, owned by the caller."""
        if self._done is not None:
            self._done.synchronize()
        ends = np.cumsum(self._lengths)[:-1]
        return [np.ascontiguousarray(part) for part in np.split(self._values.numpy(), ends)]
