"""Where AWS is: on this machine, in LocalStack, or in an account that runs a deployed stack.

A command speaks to a `Cloud` and does not ask which one it is. The two local ones run the pipeline
themselves, in a home; an account's pipeline runs there already.
"""

# ruff: noqa: PLC0415 - a mode imports what it needs: the embedded one stays fast

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from local.runtime import Home, LakeAccess, Pipeline, open_lake, poll_beside


class Where(StrEnum):
    """The choices of `freshet --aws`."""

    EMBEDDED = "embedded"
    LOCALSTACK = "localstack"
    ACCOUNT = "account"


class Cloud(Protocol):
    """What the commands need of the place where the pipeline and its lake are."""

    def home(self, command: str) -> Home:
        """The home to run `command` in; LocalRuntimeError where none is on this machine."""

    def demo_home(self) -> Home:
        """The home of a demo; LocalRuntimeError where it would mix with what is not its own."""

    def lake(self) -> AbstractContextManager[tuple[Any, LakeAccess]]:
        """The lake for reading, and how to reach its objects."""

    def sender(self) -> AbstractContextManager[Any]:
        """A `Sender` to the producer's API; afterwards, what it sent is on its way."""

    def poll(self, source: str, places: dict[str, str]) -> dict[str, Any]:
        """Poll a source once, found at `places` (settings of the poller); the poll's report."""

    def be_at_rest(self) -> None:
        """LocalRuntimeError while changes are known to be in flight."""


@dataclass(frozen=True)
class Laptop:
    """A pipeline that runs here: in the process that owns the home, or for one command alone."""

    folder: Home

    def home(self, command: str) -> Home:  # noqa: ARG002 - every command runs here
        """See `Cloud`."""
        return self.folder

    def demo_home(self) -> Home:
        """See `Cloud`."""
        self.folder.refuse_demo()
        return self.folder

    def lake(self) -> AbstractContextManager[tuple[Any, LakeAccess]]:
        """See `Cloud`."""
        return open_lake(self.folder)

    @contextmanager
    def sender(self) -> Iterator[Any]:
        """See `Cloud`. Without an owner everything sent is queryable at the end."""
        from local.sending import Sender

        owner = self.folder.owner()
        if owner is not None:
            yield Sender(owner.gateway)
            return
        with Pipeline(self.folder) as pipeline:
            yield Sender(pipeline.gateway.url)
            pipeline.drain()

    def poll(self, source: str, places: dict[str, str]) -> dict[str, Any]:
        """See `Cloud`."""
        owner = self.folder.owner()
        if owner is not None:
            return poll_beside(self.folder, owner, source, places)
        with Pipeline(self.folder, sources=places) as pipeline:
            report = pipeline.poll(source)
            pipeline.drain()
            return report

    def be_at_rest(self) -> None:
        """See `Cloud`."""
        self.folder.refuse_owner()


def cloud(where: Where, folder: Path, stack: str) -> Cloud:
    """The cloud chosen on the command line. Nothing is asked of it yet."""
    if where is Where.ACCOUNT:
        from local.account import Account

        return Account(stack)
    if where is Where.LOCALSTACK:
        from local.localstack import home_over_localstack

        return Laptop(home_over_localstack(folder))
    return Laptop(Home(folder))
