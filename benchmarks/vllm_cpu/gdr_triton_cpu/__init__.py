"""A stand-in for Triton's CPU backend, which vLLM's newer runner asks for where there is no GPU.

With `TRITON_INTERPRET=1` Triton runs its kernels in Python and never calls a backend; vLLM looks for one all the same.
"""
