"""Capture in the user's own process: any transformers model, and any torch module, while the user's own code runs it."""
