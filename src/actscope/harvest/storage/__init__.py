"""Storage of a harvest: a local directory, or a prefix of a bucket, behind one small interface.

contract   the interface: names, whole objects, put-if-absent
local      directories: durable files, published atomically
objects    s3://, gs://, az:// through obstore
opening    opening the storage that a path or URL names
"""

from actscope.harvest.storage.contract import Data, Storage
from actscope.harvest.storage.opening import open_storage

__all__ = ["Data", "Storage", "open_storage"]
