"""Reading and recovery of the log: record walk, segment index, salvage."""
