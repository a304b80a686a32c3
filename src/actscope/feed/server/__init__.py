"""Server process of the feed: HTTP, shared memory for local consumers, broker, generator supervisor, checkpoints."""
