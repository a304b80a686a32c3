"""Planning of a feed before it starts: presets, environment variables, model facts, memory estimate."""
