"""The AWS Glue Data Catalog. A swap names the table's `VersionId` (optimistic locking)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError

from lake.catalog import LakeCatalog, typed_faults
from lake.io import ObjectsFileIO


class _Glue(LakeCatalog, GlueCatalog):
    place = "Glue catalog"
    faults = (BotoCoreError, ClientError)

    @staticmethod
    def is_refusal(error: Exception) -> bool:
        """See `LakeCatalog`: no redelivery mends a missing grant."""
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
        return code in ("AccessDeniedException", "AccessDenied", "UnrecognizedClientException")


def glue_catalog(client: Any, files: ObjectsFileIO, *, warehouse: str, database: str) -> Catalog:
    """Glue through this client, the database made if it is missing. Raises `StorageError`."""
    catalog = _Glue("freshet", client=client, warehouse=warehouse)
    catalog.files = files
    # Deployed, the template makes it, and the function may not: it looks before it creates.
    with typed_faults(_Glue.place, _Glue.faults, _Glue.is_refusal):
        if not catalog.namespace_exists(database):
            with suppress(NamespaceAlreadyExistsError):
                catalog.create_namespace(database)
    return catalog
