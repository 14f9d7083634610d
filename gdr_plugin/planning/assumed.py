"""What a plan assumes: each number is printed with the plan. Data only."""

from __future__ import annotations

MFU = {"gpu": 0.40, "cpu": 0.60}
"""Share of the device's matrix-multiply speed that is of use. On CPU measured (benchmarks); on GPUs assumed."""
USABLE = 0.92
"""Share of a GPU's memory that can be filled."""
CONTEXT_GB = 1.0
"""Memory that a process takes on a GPU before anything is loaded."""
TOKENS = {"gpu": 16_384, "cpu": 2_048}
"""Tokens of a pack where limits.token_budget is not set."""
HEAD_BLOCK = {"gpu": 256 << 20, "cpu": 8 << 20}
"""Bytes of logits that exist at once."""
LAUNCH_S = 350 * 5e-6
"""Seconds in which the host starts the operations of one layer for one pack: 350 of them, 5 microseconds each."""
SERVER_PACK = 8_192
"""Tokens that a server computes at once."""
SERVER_LAUNCH_S = 60 * 5e-6
"""Seconds in which a server starts the operations of one layer for one of its batches."""
LOADING_BYTES_S = 1e9
"""Bytes a second at which weights come from a disk."""
PARALLEL = 0.9
"""What tensor parallelism keeps of the speed each time the number of GPUs doubles."""
IN_FLIGHT = 16
"""Sequences that a scoring server has in its cache at once."""
DECODE_BATCH = {"local": 64, "cpu": 32, "server": 256}
"""Responses that are drawn together."""
DECODE_HOST_S = 0.8e-3
"""Seconds a layer and step in which transformers starts what one step of decoding needs; servers record it once."""
DECODE_BANDWIDTH = 0.6
"""Share of the memory's bandwidth that decoding reaches."""
CLOSE = 1.1
"""A simpler arrangement is recommended if it takes at most this much longer."""
