"""Scores of requests: rows out of the rings matched to tokens, kept by request."""
