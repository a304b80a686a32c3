"""Extraction with vLLM in this process: whole passes, rows through shared memory."""
