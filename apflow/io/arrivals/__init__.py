"""Raw images that land, and those who wait for them (DMTN-092 section 4).

`Ingestor` takes files from a landing folder, `bucket.BucketIngestor` those that
a store of objects tells of by Kafka; both register and announce them.
`await_images` blocks until that has happened, `follow` gives what is told of
any image. They share the repository's board, so they may be in any process on
any machine that reaches it.
"""

from apflow.io.arrivals.follow import Follower, follow
from apflow.io.arrivals.ingestor import Ingestor
from apflow.io.arrivals.waits import await_images, await_named_images, cancel, check_announced

__all__ = [
    "BucketIngestor",
    "Follower",
    "Ingestor",
    "await_images",
    "await_named_images",
    "cancel",
    "check_announced",
    "follow",
]
