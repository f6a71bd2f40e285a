"""Catalogs: where a table's current metadata is named. Each commits by compare-and-swap on that
pointer; what they share is here, an adapter each in `lake.glue` and `lake.sqlite`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pyiceberg.catalog import MetastoreCatalog
from pyiceberg.io import FileIO
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import Identifier

from freshet.errors import SettingsError, StorageError
from lake.io import ObjectsFileIO


def _never(_error: Exception) -> bool:
    return False


@contextmanager
def typed_faults(
    place: str,
    faults: tuple[type[Exception], ...],
    is_refusal: Callable[[Exception], bool] = _never,
) -> Iterator[None]:
    """Turn a catalog's faults into `StorageError`, as the batch may come again; one that only a
    person can mend (`is_refusal`) into `SettingsError`.
    """
    try:
        yield
    except faults as error:
        detail = f"{type(error).__name__}: {error}"
        if is_refusal(error):
            raise SettingsError(
                place, f"refuses this caller: grant what it names. {detail}"
            ) from error
        raise StorageError(place, detail) from error


class LakeCatalog(MetastoreCatalog):
    """A pyiceberg catalog over our file access, its faults typed. Mixed in before pyiceberg's own.

    `faults` are the adapter's errors; a metadata file that is gone is one of each: the pointer was
    read too long ago.
    """

    place: ClassVar[str]
    faults: ClassVar[tuple[type[Exception], ...]]
    files: ObjectsFileIO

    @staticmethod
    def is_refusal(_error: Exception) -> bool:
        """Whether a fault lasts until a person grants something."""
        return False

    def _load_file_io(self, *_place: Any, **_named: Any) -> FileIO:
        return self.files

    def load_table(self, identifier: str | Identifier) -> Table:
        """See pyiceberg. Raises `StorageError`, `SettingsError`."""
        with typed_faults(self.place, (*self.faults, FileNotFoundError), self.is_refusal):
            return super().load_table(identifier)  # type: ignore[safe-super]

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        """See pyiceberg. Raises `StorageError`, `SettingsError`."""
        with typed_faults(self.place, (*self.faults, FileNotFoundError), self.is_refusal):
            return super().commit_table(table, requirements, updates)  # type: ignore[safe-super]
