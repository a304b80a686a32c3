"""The command `actscope doctor` and its checks."""
