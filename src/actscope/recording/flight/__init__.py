"""Flight recorder: a bounded buffer of recent rows. Marks and triggers move rows to the recording; the rest expires."""
