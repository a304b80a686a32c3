"""actscope feed."""
