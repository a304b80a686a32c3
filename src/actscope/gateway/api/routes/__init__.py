"""The gateway's paths."""
