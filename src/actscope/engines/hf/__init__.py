"""The Hugging Face engine: runs causal language models of transformers with batching, streaming and taps."""
