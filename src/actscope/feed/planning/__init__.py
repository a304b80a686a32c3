"""Before a feed starts: presets, environment, model facts and the memory estimate."""
