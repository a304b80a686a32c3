"""Row labels: which request, position and token each row of a forward pass belongs to."""
