"""actscope: the oscilloscope for language models.

Importing this package loads neither torch, vLLM nor FastAPI; parts that need them load them when they are used.
"""

__version__ = "0.1.0"
