"""Shards: the rows of a unit in standard file formats. The same rows give the same bytes.

contract      interface of a shard that is being written
safetensors   one tensor for each site, and four of labels
arrow         full contexts as rows of a table, for `datasets` and SAELens
reading       reading safetensors shards
sizes         bytes of a row, for estimates
"""
