"""A plugin of vLLM's: a request that scores given tokens reads the prefix cache only up to its first scored row.

Without it vLLM answers such a request with null, and status 200, where its cache holds more of the text than the
context: the same text asked twice, or two responses that begin alike. It has to be asked again, without the cache.

vLLM finds it by the entry point `vllm.general_plugins` in every process of a server whose environment has this package
(`pip install --no-deps gdr-plugin` is enough: it needs nothing but vLLM). `VLLM_PLUGINS` chooses among plugins.
"""

from gdr_vllm.cap import register

__all__ = ["register"]
