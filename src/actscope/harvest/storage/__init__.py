"""Where a harvest is put: a local directory, or a prefix of a bucket, behind one small contract.

contract   what a harvest asks of its storage: names, whole objects, put-if-absent
local      directories: durable files, published whole
objects    s3://, gs://, az:// through obstore
opening    the right one for what was given
"""

from actscope.harvest.storage.contract import Data, Storage
from actscope.harvest.storage.opening import open_storage

__all__ = ["Data", "Storage", "open_storage"]
