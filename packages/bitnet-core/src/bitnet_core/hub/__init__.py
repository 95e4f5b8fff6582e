"""Models of a hub on this machine: found, fetched, proven, kept and removed.

`resolve` is the door. It speaks the protocol of the Hugging Face Hub and shares its cache with huggingface_hub,
which gives the client, the login and the settings; the bytes are fetched here, where every file is proven by its
digest and nothing unfinished ever has a final name.
"""

from .catalogue import Description, Found, RemoteFile, describe, search
from .inventory import CachedModel, DiskUsage, cached, clean_up, disk_usage, pin, remove, unpin
from .patience import Patience
from .snapshot import Progress, resolve

__all__ = [
    "CachedModel",
    "Description",
    "DiskUsage",
    "Found",
    "Patience",
    "Progress",
    "RemoteFile",
    "cached",
    "clean_up",
    "describe",
    "disk_usage",
    "pin",
    "remove",
    "resolve",
    "search",
    "unpin",
]
