"""One suite for both catalogs: the pointer is created once, swapped by compare-and-swap, seen by
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from botocore.stub import Stubber
from moto import mock_aws
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    SetPropertiesUpdate,
    TableRequirement,
)
from sqlalchemy.exc import OperationalError

from freshet.contract import Registry
from freshet.errors import SettingsError, StorageError
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.catalog import typed_faults
from lake.glue import glue_catalog
from lake.io import ObjectsFileIO
from lake.lake import Lake
from lake.spec import rows_spec
from lake.sqlite import sql_catalog
from lake.testing import batch, placed

ROOT = "s3://bucket/lake"
TABLE = ("freshet", "sales")
TABLES_OF_SALES = Registry((Sale,))
Open = Callable[[ObjectsFileIO], Catalog]


@pytest.fixture(params=["sql", "glue"])
def open_catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens another instance of the same catalog each time."""
    if request.param == "sql":
        yield lambda files: sql_catalog(
            tmp_path / "a folder" / "cata log?.db", files, warehouse=ROOT, database="freshet"
        )
        return
    with mock_aws():
        client = boto3.client(
            "glue",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}),
        )
        yield lambda files: glue_catalog(client, files, warehouse=ROOT, database="freshet")


@pytest.fixture
def files() -> ObjectsFileIO:
    return ObjectsFileIO(MemoryObjects(), ROOT)


def create(catalog: Catalog) -> None:
    spec = rows_spec(Sale)
    catalog.create_table_transaction(
        TABLE, spec.iceberg_schema(), partition_spec=spec.iceberg_partition_spec()
    ).commit_transaction()


def set_property(catalog: Catalog, name: str, *requirements: TableRequirement) -> None:
    update = SetPropertiesUpdate(updates={name: "set"})
    catalog.commit_table(catalog.load_table(TABLE), requirements, (update,))


def test_a_created_table_is_there_for_another_instance(
    open_catalog: Open, files: ObjectsFileIO
) -> None:
    create(open_catalog(files))

    table = open_catalog(files).load_table(TABLE)

    assert [field.name for field in table.schema().fields] == rows_spec(Sale).schema.names
    assert table.location().startswith(f"{ROOT}/freshet")


def test_a_table_that_is_not_there_is_said_so(open_catalog: Open, files: ObjectsFileIO) -> None:
    with pytest.raises(NoSuchTableError):
        open_catalog(files).load_table(TABLE)


def test_a_swap_is_seen_by_other_instances(open_catalog: Open, files: ObjectsFileIO) -> None:
    one, other = open_catalog(files), open_catalog(files)
    create(one)
    before = other.load_table(TABLE).metadata_location

    set_property(one, "first")
    set_property(other, "second")

    table = one.load_table(TABLE)
    assert {"first", "second"} <= table.properties.keys()
    assert table.metadata_location != before


def test_a_commit_on_another_snapshot_than_the_current_conflicts(
    open_catalog: Open, files: ObjectsFileIO
) -> None:
    catalog = open_catalog(files)
    create(catalog)

    with pytest.raises(CommitFailedException):
        set_property(catalog, "late", AssertRefSnapshotId(ref="main", snapshot_id=42))

    assert "late" not in catalog.load_table(TABLE).properties


def test_metadata_goes_through_our_file_access_only(
    open_catalog: Open, files: ObjectsFileIO
) -> None:
    """pyiceberg's SQL catalog once read and wrote some of it with pyarrow's file systems."""
    catalog = open_catalog(files)

    create(catalog)

    table = catalog.load_table(TABLE)
    assert table.io is files
    assert files.new_input(table.metadata_location).exists()


def test_a_whole_lake_runs_on_it(open_catalog: Open) -> None:
    objects = MemoryObjects()

    def lake() -> Lake:
        return Lake(objects, ROOT, open_catalog, tables=TABLES_OF_SALES, io_threads=1)

    one, other = lake(), lake()
    changes = [placed(Sale, at, version=1, after=sale_row(f"{at}-1")) for at in range(3)]
    one.apply("sales", batch(Sale, changes), {})
    delete = placed(Sale, 9, version=2, key={"sale_id": "1-1"})
    receipt = other.apply("sales", batch(Sale, [*changes, delete]), {}).receipt

    assert (receipt.duplicate, receipt.stale, receipt.deleted) == (2, 1, 1)
    assert set(one.rows("sales").column("sale_id").to_pylist()) == {"0-1", "2-1"}


def test_two_swaps_from_one_state_have_one_winner(tmp_path: Path, files: ObjectsFileIO) -> None:
    """SQLite only: moto's Glue takes any `VersionId`."""

    def open_one() -> Any:
        return sql_catalog(tmp_path / "catalog.db", files, warehouse=ROOT, database="freshet")

    winner, loser = open_one(), open_one()
    create(winner)
    stage = loser._update_and_stage_table

    def staged_late(*arguments: object) -> object:
        staged = stage(*arguments)
        set_property(winner, "won")
        return staged

    loser._update_and_stage_table = staged_late
    with pytest.raises(CommitFailedException):
        set_property(loser, "lost")

    assert "won" in winner.load_table(TABLE).properties
    assert "lost" not in winner.load_table(TABLE).properties


@pytest.mark.parametrize(
    "fault",
    [
        OperationalError("UPDATE", {}, Exception("database is locked")),
        EndpointConnectionError(endpoint_url="https://glue"),
        FileNotFoundError("metadata is gone"),
    ],
)
def test_faults_of_a_catalog_become_storage_errors(fault: Exception) -> None:
    with (
        pytest.raises(StorageError) as raised,
        typed_faults("catalog", (OperationalError, EndpointConnectionError, FileNotFoundError)),
    ):
        raise fault

    assert raised.value.place == "catalog"
    assert type(fault).__name__ in raised.value.detail
    assert raised.value.__cause__ is fault


def test_a_glue_that_does_not_answer_is_a_storage_error(files: ObjectsFileIO) -> None:
    client = boto3.client(
        "glue",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1),
    )

    with pytest.raises(StorageError, match="Glue catalog"):
        glue_catalog(client, files, warehouse=ROOT, database="freshet")


def test_a_grant_that_is_missing_is_told_apart_from_a_fault_that_passes() -> None:
    """The first is for a person, so that the consumer's error alarm rings; the batch waits."""

    glue = boto3.client("glue", region_name="us-east-1")
    files = ObjectsFileIO(MemoryObjects(), "s3://lake")

    with Stubber(glue) as answers:
        answers.add_client_error("get_database", "AccessDeniedException", "glue:GetDatabase")
        answers.add_client_error("get_database", "ThrottlingException")
        with pytest.raises(SettingsError, match=r"grant .*glue:GetDatabase"):
            glue_catalog(glue, files, warehouse="s3://lake", database="freshet")
        with pytest.raises(StorageError, match="ThrottlingException"):
            glue_catalog(glue, files, warehouse="s3://lake", database="freshet")
