"""Shards: the rows of a unit in a form that others read. The same rows give the same bytes.

contract      what puts rows into a shard
safetensors   one tensor a site, and four of labels
arrow         full contexts as rows of a table: `datasets`, SAELens
"""
