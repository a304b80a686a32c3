"""Extraction: run the texts of a dataset through a model, without generation, and return labelled rows of their tokens.

The feed and the harvest are built on this. `texts` opens the dataset, `cutting` cuts its texts into pieces that fit the
model's context, `stream` orders the pieces of an epoch reproducibly, and `opening` opens a reader: `hf` with transformers,
`actscope.extraction.vllm.reader` with vLLM. `contract` defines the types that they exchange.
"""
