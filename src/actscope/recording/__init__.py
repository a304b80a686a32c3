"""Recordings: rows and their labels, kept on disk and read back lazily. What lies on disk is in docs/recording.md."""
