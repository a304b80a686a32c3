"""The feed's buffer: who may use which rows, and where they lie in memory."""
