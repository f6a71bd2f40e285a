"""Where the lake is, as the environment says it: the same variables for every function that opens
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from freshet.errors import SettingsError
from freshet.settings import required


@dataclass(frozen=True, slots=True)
class LakeSettings:
    """Where the lake is. `catalog_path` is the SQLite file of the `sql` catalog."""

    lake_bucket: str
    lake_prefix: str
    database: str
    catalog: Literal["glue", "sql"]
    catalog_path: Path | None = None

    @property
    def root(self) -> str:
        """The lake's root location."""
        return f"s3://{self.lake_bucket}/{self.lake_prefix}"

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> LakeSettings:
        """Settings from environment variables. Raises `SettingsError` naming the variable."""
        env = os.environ if environment is None else environment
        catalog = env.get("CATALOG", "glue")
        if catalog not in ("glue", "sql"):
            raise SettingsError("CATALOG", f"must be glue or sql, not {catalog!r}")
        path = env.get("CATALOG_PATH")
        if catalog == "sql" and not path:
            raise SettingsError("CATALOG_PATH", "must name the SQLite file when CATALOG is sql")
        return cls(
            lake_bucket=required(env, "LAKE_BUCKET"),
            lake_prefix=env.get("LAKE_PREFIX", "lake"),
            database=required(env, "DATABASE"),
            catalog="glue" if catalog == "glue" else "sql",
            catalog_path=Path(path) if path else None,
        )
