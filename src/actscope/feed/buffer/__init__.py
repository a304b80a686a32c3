"""The feed's buffer: allocation of its rows to consumers, and their place in shared memory."""
