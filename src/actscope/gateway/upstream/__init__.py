"""Engines behind the gateway: how they are discovered, connected to, and controlled."""
