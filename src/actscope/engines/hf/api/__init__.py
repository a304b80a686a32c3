"""The engine's OpenAI API in vLLM's dialect: fields of requests, prompts, and the format of answers."""
