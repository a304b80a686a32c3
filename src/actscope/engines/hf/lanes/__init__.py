"""Lanes of a batch: their caches and recurrent states, and how a model with such states can be served exactly."""
