"""Reading texts: a dataset goes through a model once, nothing is generated, and the rows of its tokens come back labelled.

The feed and the harvest both stand on this. `texts` finds the texts, `cutting` makes pieces of them that a model can read,
`hf` reads pieces with transformers; `actscope.engines.vllm.reader` reads them with vLLM.
"""
