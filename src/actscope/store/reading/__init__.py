"""Reading and repairing the log: walking records, the index of all segments, recovery."""
