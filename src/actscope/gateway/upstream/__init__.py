"""Engines behind the gateway: discovery, connections, control."""
