"""Opens the lake that settings describe: the same for every function and for the laptop, so that
none of them imports another. AWS clients come in as their maker; the composition roots have it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pyiceberg.catalog import Catalog

from freshet.contract import Registry
from freshet.s3 import S3Objects
from lake.glue import glue_catalog
from lake.lake import Lake
from lake.settings import LakeSettings


def open_lake(
    settings: LakeSettings, tables: Registry, client: Callable[..., Any], **options: Any
) -> Lake:
    """The lake that the settings describe; `client` is `boto3.client`, `options` go to `Lake`.

    Raises `StorageError` when the catalog does not answer.
    """
    objects = S3Objects(client("s3"), settings.lake_bucket, settings.lake_prefix)
    catalog = _catalog(settings, client)
    return Lake(
        objects,
        settings.root,
        lambda files: catalog(files, warehouse=settings.root, database=settings.database),
        tables=tables,
        database=settings.database,
        **options,
    )


def _catalog(settings: LakeSettings, client: Callable[..., Any]) -> Callable[..., Catalog]:
    if settings.catalog == "glue":
        return partial(glue_catalog, client("glue"))
    from lake.sqlite import sql_catalog  # noqa: PLC0415 - SQLAlchemy is not in the Lambda layer

    assert settings.catalog_path is not None, "from_env requires it with CATALOG=sql"
    return partial(sql_catalog, settings.catalog_path)
