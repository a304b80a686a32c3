"""The gateway's HTTP side: OpenAI's routes, our own, and what goes over the wire."""
