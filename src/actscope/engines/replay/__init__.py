"""An engine without a model: it publishes a recording's steps as if they happened now, with scores of any probes."""
