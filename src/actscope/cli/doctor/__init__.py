"""actscope doctor."""
