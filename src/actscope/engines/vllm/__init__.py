"""The vLLM engine: a plugin that lets a stock vLLM server be watched. All contact with vLLM's internals is in this room."""
