"""From a pass to the rings: copies to the host, labels, cached prompts' scores, publication."""
