"""The world of the built-in model's training text: words, scenes, stories and conversations."""
