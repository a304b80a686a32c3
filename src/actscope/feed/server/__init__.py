"""The feed's server process: HTTP, the broker, the generator's supervision, checkpoints."""
