"""Taps that read a model, and attribution that says whose rows they are."""
