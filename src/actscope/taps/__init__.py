"""Taps, which read a model's activations, and attribution, which maps each row to its request and position."""
