"""``apflow ingest``: raw images into the repository as they arrive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

_GLANCE_S = 0.5


def ingest(
    butler: Annotated[Path, typer.Option(metavar="REPO", help="Butler repository, as apflow init makes it.")],
    landing: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder in which raw images land.")] = None,
    bucket: Annotated[
        str,
        typer.Option(metavar="URI", help="Instead: store of objects (s3://bucket, a folder), read as --topic tells."),
    ] = "",
    topic: Annotated[str, typer.Option(help="Topic of the bucket's notifications, at the broker of table kafka.")] = "",
    group: Annotated[str, typer.Option(help="Kafka consumer group.")] = "apflow-ingest",
) -> None:
    """Register raw images as they arrive, and wake whoever waits for them; apflow listen does it too for its folder.

    It serves until Ctrl-C or SIGTERM, and then takes what has come so far.

    Example: apflow ingest --butler replay/butler --landing replay/more
    """
    from apflow.config import load_config
    from apflow.errors import BadRequest
    from apflow.io.arrivals import Ingestor
    from apflow.io.arrivals.background import Background
    from apflow.io.arrivals.bucket import BucketIngestor
    from apflow.io.butler import Repository
    from apflow.io.butler.create import SETTINGS
    from apflow.operate.interrupts import interruptible

    if (landing is None) == (not bucket) or bool(bucket) != bool(topic):
        raise BadRequest("apflow ingest takes either --landing DIR, or --bucket URI with --topic TOPIC")
    with Repository(butler) as repository:
        kafka = load_config(repository.root / SETTINGS).kafka
    ingestor: Background = (
        Ingestor(butler, landing) if landing else BucketIngestor(butler, kafka, topic, bucket, group=group)
    )
    try:
        with interruptible(), ingestor:
            typer.echo(f"taking raw images from {landing or bucket}")
            while True:
                time.sleep(_GLANCE_S)
                ingestor.check()
    except KeyboardInterrupt:
        typer.echo("ended as asked", err=True)
