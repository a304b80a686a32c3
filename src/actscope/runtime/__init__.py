"""The runtime directory, private files, process identity and atomic publication of files: the state of one user's processes."""
