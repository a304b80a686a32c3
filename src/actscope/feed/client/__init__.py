"""Clients of the feed."""
