"""The gateway's HTTP API: OpenAI's routes, actscope's own routes, and the payloads."""
