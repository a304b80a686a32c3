"""The runtime directory, private files, and which process owns what: shared by every process of one user."""
