"""Recording pipeline: per-site queues, codec workers, recorder, resume."""
