"""The process beside an observed vLLM worker: loads probes and records rows. It imports neither torch nor vLLM."""
