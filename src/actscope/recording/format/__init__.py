"""Formats of a recording: index keys, records, row labels, packets. See docs/recording.md."""
