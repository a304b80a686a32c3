"""The Hugging Face engine: any causal language model of transformers, batched, streamed and tapped."""
