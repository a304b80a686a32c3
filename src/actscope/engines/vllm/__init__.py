"""vLLM engine: a plugin that observes a stock vLLM server. All access to vLLM internals is in this package."""
