"""Extraction with vLLM in this process; rows arrive through shared memory."""
