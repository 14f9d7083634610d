"""Models on servers, against a small server that speaks what vLLM, SGLang and providers speak (`fake`)."""
