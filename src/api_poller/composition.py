"""Puts a source together for one poll: its declaration, log-in, session and parents.

A declaration is read when its source is asked for, so that a file that is wrong stops no other
source. Everything that differs by place (where a source is, where its credentials are, how long a
poll may take) comes in with the settings and the arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from api_poller.auth import authenticator_for
from api_poller.credentials import credentials_for
from api_poller.declaration import (
    NO_PARENT,
    DeclarationError,
    FullSync,
    IncrementalSync,
    OffsetPagination,
    ParentSource,
    Problem,
    SourceDeclaration,
    load_source,
)
from api_poller.http import Session, UrllibTransport
from api_poller.listing import DeclaredSource, Parents, parents_of
from api_poller.poll import STOP_MARGIN_S, Poller
from api_poller.settings import Settings
from api_poller.state import StateStore
from api_poller.tokens import ObjectTokens
from api_poller.transport import Transport
from freshet.clock import Now
from freshet.contract import Registry
from freshet.errors import TerminalError
from freshet.objects import Objects
from freshet.pii import Protector
from freshet.stream import ChangeStream
from freshet.tables import TABLES

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

Secrets = Callable[[], "SecretsManagerClient"]
RemainingS = Callable[[], float]


class UnknownSourceError(TerminalError):
    """The schedule's input names no source of this poller."""

    def __init__(self, source: object, known: tuple[str, ...]) -> None:
        self.source, self.known = source, known
        super().__init__(
            f'no source {source!r}: correct the input of the schedule to {{"source": "<name>"}} '
            f"with one of {', '.join(known)}"
        )


@dataclass(frozen=True)
class Composition:
    """The sources of a folder over these adapters; see `compose`."""

    settings: Settings
    stream: ChangeStream
    objects: Objects
    now: Now
    secrets: Secrets
    transport: Transport = field(default_factory=UrllibTransport)
    tables: Registry = TABLES
    sleep: Callable[[float], None] = time.sleep
    protector: Protector | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the sources that are declared, whether right or wrong."""
        return tuple(sorted(path.stem for path in self.settings.sources_folder.glob("*.yaml")))

    def declaration(self, name: object) -> SourceDeclaration:
        """What is declared of a source, with what the settings say of it.

        Raises `UnknownSourceError`, `DeclarationError`, `SettingsError`.
        """
        if not isinstance(name, str) or name not in self.names:
            raise UnknownSourceError(name, self.names)
        path = self.settings.sources_folder / f"{name}.yaml"
        return _adjusted(name, load_source(path, self.tables), self.settings)

    def source(self, name: object, remaining_s: RemainingS | None = None) -> DeclaredSource:
        """A source as it can be listed now, with the credentials that hold now.

        Its session ends a poll in time to put it down, where `remaining_s` says what is left.
        Raises as `declaration` does, and `CredentialsUnavailableError`.
        """
        source = self._source(name, remaining_s, ())
        # Only the rows that are told: a parent's values are needed as they are, to ask for its own.
        protector = self.protector or Protector.none([source.contract])
        return replace(source, protector=protector)

    def _source(
        self, name: object, remaining_s: RemainingS | None, below: tuple[object, ...]
    ) -> DeclaredSource:
        if name in below:
            raise UnknownSourceError(name, tuple(one for one in self.names if one not in below))
        declaration = self.declaration(name)
        assert isinstance(name, str)
        session = self._session(name, declaration, remaining_s)
        parents: Parents | None = None
        if isinstance(declaration.parents, ParentSource):
            above = self._source(declaration.parents.source, remaining_s, (*below, name))
            parents = self._parents(name, above, declaration.parents.column)
        contract = self.tables[declaration.table]
        return DeclaredSource(name, declaration, contract, session, parents)

    def _parents(self, name: str, above: DeclaredSource, column: str) -> Parents:
        if above.contract.column(column).pii:
            file = f"{self.settings.sources_folder.name}/{name}.yaml"
            raise DeclarationError((Problem(file, 1, "parents", f"column {column} {NO_PARENT}"),))
        return parents_of(above, column)

    def _session(
        self, name: str, declaration: SourceDeclaration, remaining_s: RemainingS | None
    ) -> Session:
        reference = declaration.credentials or name.upper()
        credentials = credentials_for(reference, self.settings.of_sources, self.secrets)
        authenticator = authenticator_for(
            declaration.auth,
            credentials.fields,
            ObjectTokens(self.objects, reference),
            self.now,
            base_url=declaration.url,
            setting=credentials.setting,
            headers=credentials.headers,
            sleep=self.sleep,
        )
        return Session(
            name,
            declaration.limits,
            declaration.places,
            authenticator,
            transport=self.transport,
            now=self.now,
            sleep=self.sleep,
            allow_loopback=self.settings.allow_loopback,
            remaining_s=remaining_s and (lambda: remaining_s() - STOP_MARGIN_S),
        )

    def poller(self) -> Poller:
        """What polls them."""
        return Poller(self.stream, self.states, self.now)

    @property
    def states(self) -> StateStore:
        """What is remembered of them."""
        return StateStore(self.objects)


def _adjusted(name: str, declared: SourceDeclaration, settings: Settings) -> SourceDeclaration:
    """The declaration with what the settings say in its place."""
    members: dict[str, Any] = {}
    url = settings.url_of(name)
    if url is not None:
        members["url"] = url
    if settings.page_rows is not None and isinstance(declared.pagination, OffsetPagination):
        rows = {"page_rows": settings.page_rows}
        members["pagination"] = declared.pagination.model_copy(update=rows)
    if settings.delete_share_max is not None and isinstance(declared.sync, FullSync):
        share = {"delete_share_max": settings.delete_share_max}
        members["sync"] = declared.sync.model_copy(update=share)
    if name == "ecb" and settings.ecb_start and isinstance(declared.sync, IncrementalSync):
        start = {"start": settings.ecb_start.isoformat()}
        members["sync"] = declared.sync.model_copy(update=start)
    if name == "platzi" and settings.product_currency is not None:
        members["columns"] = _with_constant(declared.columns, "currency", settings.product_currency)
    return declared.model_copy(update=members) if members else declared


def _with_constant(columns: Mapping[str, Any], name: str, value: str) -> dict[str, Any]:
    changed = columns[name].model_copy(update={"constant": value})
    return {**columns, name: changed}
