"""Reading a recording: lazily, by site, request and position."""
