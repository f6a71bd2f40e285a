"""Where AWS is: on this machine, in LocalStack, or in an account that runs a deployed stack.

A command speaks to a `Cloud` and does not ask which one it is. The two local ones run the pipeline
themselves, in a home; an account's pipeline runs there already.
"""

# ruff: noqa: PLC0415 - a mode imports what it needs: the embedded one stays fast

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from local.runtime import (
    STATE_BUCKET,
    Home,
    LakeAccess,
    Pipeline,
    ReportProgress,
    beside,
    open_lake,
    poll_now,
    reading,
)


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

    def lake(self, *, read_only: bool = True) -> AbstractContextManager[tuple[Any, LakeAccess]]:
        """The lake, and how to reach its objects: for reading, which leaves its tables as they are,
        unless told otherwise. An account's is for reading, whoever asks.
        """

    def sender(self) -> AbstractContextManager[Any]:
        """A `Sender` to the producer's API; afterwards, what it sent is on its way."""

    def poll(
        self, event: Mapping[str, Any], places: dict[str, str], progress: ReportProgress
    ) -> dict[str, Any]:
        """Poll once as `event` says, the source found at `places` (settings of the poller).

        `progress` is told pages, rows and changes, where that can be known; the poll's report.
        """

    def states(self) -> AbstractContextManager[Any]:
        """The store of what is remembered of sources."""

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

    def lake(self, *, read_only: bool = True) -> AbstractContextManager[tuple[Any, LakeAccess]]:
        """See `Cloud`."""
        return open_lake(self.folder, read_only=read_only)

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

    def poll(
        self, event: Mapping[str, Any], places: dict[str, str], progress: ReportProgress
    ) -> dict[str, Any]:
        """See `Cloud`. Without an owner everything published is queryable at the end."""
        if self.folder.owner() is not None:
            with beside(self.folder, places):
                return poll_now(event, progress)
        with Pipeline(self.folder, sources=places) as pipeline:
            report = poll_now(event, progress)
            pipeline.drain()
            return report

    @contextmanager
    def states(self) -> Iterator[Any]:
        """See `Cloud`."""
        with reading(self.folder):
            import boto3

            from api_poller.state import StateStore
            from freshet.s3 import S3Objects

            yield StateStore(S3Objects(boto3.client("s3"), STATE_BUCKET))

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
