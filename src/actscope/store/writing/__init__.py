"""Write path of the log: buffers, framing, I/O thread and segment files."""
