"""What lies on disk: index keys, records, row labels, packets. See docs/recording.md."""
