"""Reading texts: a dataset goes through a model once, nothing is generated, and the rows of its tokens come back labelled.

The feed and the harvest both stand on this. `texts` finds the texts, `cutting` makes pieces of them that a model can read,
`stream` puts the pieces of an epoch into an order that can be computed again, and `opening` opens what reads them: `hf` with
transformers, `actscope.extraction.vllm.reader` with vLLM. What they hand each other is in `contract`.
"""
