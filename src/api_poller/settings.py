"""The poller's settings: the one place that reads its environment, checked at start by name.

What a source is stands in its declaration; settings say what differs where the poller runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from urllib3.util import parse_url

from freshet.errors import SettingsError

# Beside the packages, in a checkout, an installed wheel and a Lambda alike.
SHIPPED_SOURCES = Path(__file__).parents[1] / "sources"
# Variables of a source, each after its name or the name of its credentials.
_OF_SOURCES = (
    *("_URL", "_SECRET_ID", "_CREDENTIALS", "_USERNAME", "_PASSWORD", "_TOKEN", "_API_KEY"),
    *("_CLIENT_ID", "_CLIENT_SECRET", "_REFRESH_TOKEN"),
)
_AWS = "AWS_"


def _http_url(value: str) -> str:
    parts = parse_url(value)  # the parser of what connects: no two readings of a host
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("must be a URL as https://host/path")
    if parts.auth:
        raise ValueError("must not hold credentials: keep them in the secret of the source")
    if parts.query or parts.fragment:
        raise ValueError("must be a base URL, without query or fragment")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]
_URL: TypeAdapter[str] = TypeAdapter(HttpUrl)


class Settings(BaseModel):
    """Each field but `of_sources` is the environment variable of the same name in capitals.

    `of_sources` are the variables that belong to single sources: `PLATZI_URL`, `SPOTIFY_SECRET_ID`.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    stream_name: str = Field(min_length=1)
    state_bucket: str = Field(min_length=1)
    state_prefix: str = ""
    # The secret with the key for columns that contracts declare `hash`.
    pii_secret_arn: str = ""
    sources_folder: Path = SHIPPED_SOURCES
    # Sample servers on a laptop; a deployed poller never speaks to its own machine.
    allow_loopback: bool = False
    # The Platzi API states prices without a currency.
    product_currency: str | None = Field(None, pattern="^[A-Z]{3}$")
    # These three hold for every source that has such a member; None leaves the declared one.
    delete_share_max: float | None = Field(None, ge=0, le=1)
    page_rows: int | None = Field(None, ge=2, le=10_000)
    ecb_start: date | None = None
    of_sources: Mapping[str, str] = Field(default_factory=dict, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """The settings in `environ`. Raises `SettingsError` naming the variable to correct."""
        names = (name for name in cls.model_fields if name != "of_sources")
        values = {name: environ[name.upper()] for name in names if environ.get(name.upper())}
        of_sources = {
            name: value
            for name, value in environ.items()
            if name.endswith(_OF_SOURCES) and not name.startswith(_AWS) and value
        }
        try:
            return cls.model_validate({**values, "of_sources": of_sources})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise SettingsError(
                str(first["loc"][0]).upper(), first["msg"].removeprefix("Value error, ")
            ) from None

    def url_of(self, source: str) -> str | None:
        """Where a source is, if not where it is declared: `SHOP_URL`, also of `shop_categories`.

        Raises `SettingsError` naming the variable to correct.
        """
        words = source.upper().split("_")
        for count in range(len(words), 0, -1):
            name = f"{'_'.join(words[:count])}_URL"
            if name in self.of_sources:
                try:
                    return _URL.validate_python(self.of_sources[name])
                except ValidationError as error:
                    detail = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise SettingsError(name, detail) from None
        return None
