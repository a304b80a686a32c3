"""The ring: fixed-size circular memory between the model's process and its readers. See docs/ring.md."""
