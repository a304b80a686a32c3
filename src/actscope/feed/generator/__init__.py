"""The process that reads texts through the model and fills windows. It has the model; the server has not even torch."""
