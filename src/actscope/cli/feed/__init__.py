"""The command `actscope feed` and its checks."""
