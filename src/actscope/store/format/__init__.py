"""File formats of the log: segments, envelope, checksums, manifest, watermark. See docs/store.md."""
