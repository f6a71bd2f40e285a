"""The local runtime keeps to itself: no real account, no proxy, no profile of the user's."""

from __future__ import annotations

import os

import pytest

from local.runtime import _forget_real_aws


def test_the_users_own_aws_and_proxy_do_not_reach_the_local_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A profile that does not exist was a trace; an endpoint of one service led to real AWS."""
    monkeypatch.setenv("AWS_PROFILE", "nope")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://example.invalid")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/somewhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/somewhere")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("no_proxy", "")

    _forget_real_aws()

    named = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    assert named == {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost"
    assert os.environ["no_proxy"] == "127.0.0.1,localhost"
