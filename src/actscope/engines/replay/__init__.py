"""The replay engine: publishes a recording's steps as if they happened now, scored with any probes, without the model."""
