"""The truth check: one pass over random streams, before the model is compiled, shows which tensors are the row of a site."""
