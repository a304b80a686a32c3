"""The process beside a watched vLLM worker: probes come in here, rows go out to recordings. It loads no torch and no vLLM."""
