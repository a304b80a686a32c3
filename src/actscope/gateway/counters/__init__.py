"""Counters of the gateway and of the engine behind it: counted, collected, and shown."""
