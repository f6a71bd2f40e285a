"""The poller's settings: the one place that reads its environment, checked at start by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from urllib3.util import parse_url

from freshet.errors import SettingsError


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


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True)

    stream_name: str = Field(min_length=1)
    state_bucket: str = Field(min_length=1)
    state_prefix: str = ""
    platzi_url: HttpUrl = "https://api.escuelajs.co/api/v1"
    ecb_url: HttpUrl = "https://data-api.ecb.europa.eu/service"
    # ARN or name of the secret with the shop's request headers; a shop open to all needs none.
    platzi_secret_id: str | None = Field(None, min_length=1, max_length=2048)
    # The Platzi API states prices without a currency.
    product_currency: str = Field("USD", pattern="^[A-Z]{3}$")
    # A shop that drops a fifth of its catalogue between two polls is rarer than half a listing.
    delete_share_max: float = Field(0.2, ge=0, le=1)
    # Fewer pages mean fewer chances that the listing shifts while it is read; a page is about 1 MB.
    page_rows: int = Field(500, ge=2, le=10_000)
    # The day of the first euro reference rates.
    ecb_start: date = date(1999, 1, 4)
    # Ten days hold at least three publications, also over Easter and the turn of the year.
    ecb_overlap_days: int = Field(10, ge=0, le=365)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """The settings in `environ`. Raises `SettingsError` naming the variable to correct."""
        values = {
            name: environ[name.upper()] for name in cls.model_fields if environ.get(name.upper())
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise SettingsError(str(first["loc"][0]).upper(), first["msg"]) from None
