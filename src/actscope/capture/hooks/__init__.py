"""Hooks on a model that is captured: its passes, the check of the first one, and models that were compiled."""
