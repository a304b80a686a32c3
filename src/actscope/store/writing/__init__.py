"""The write path: buffers, framing, the I/O thread and segment files."""
