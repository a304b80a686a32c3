"""The recording pipeline: per-site queues, codec workers, the recorder, resume."""
