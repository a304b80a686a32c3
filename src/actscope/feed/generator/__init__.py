"""Generator process: runs texts through the model and fills windows. It loads the model; the server does not load torch."""
