"""Models that servers compute: vLLM, SGLang, and providers that echo log-probs of a given text."""
