"""Lazy reading of recordings by site, request and position."""
