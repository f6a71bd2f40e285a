"""Structure-aware fuzzing that fits the fast suite, and proof that the long run finds faults."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.fuzz import target
from tests.fuzz.decoders import main
from tests.fuzz.mutate import BYTES_MAX, mutate
from tests.fuzz.seeds import SPLITS, seeds
from tests.fuzz.target import BrokenPromiseError, Tally, check_parts, decoded

from freshet.errors import RejectedError
from freshet.wire import Ignored, Rejected

SEEDS = seeds("mixed")
MUTATED = 6_000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS), rounds=st.integers(1, 4), random=st.randoms(use_true_random=False)
)
def test_every_mutated_record_ends_in_outcomes(seed: bytes, rounds: int, random: Random) -> None:
    data = seed
    for _ in range(rounds):
        data = mutate(data, random, SEEDS)
    Tally().check(data)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
@example(data=b"")
@example(data=b"null")
@example(data=b"FRSH")
@example(data=b"\xf3\x89\x9a\xc2")
@example(data=b"[" * 100_000)
@example(data=b'{"payload":' * 20_000)
@example(data=b'{"op":"c","after":{"amount":' + b"9" * 50_000 + b"}}")
@example(data=b"\n" * 4_000 + b"{}" * 4_000)
def test_every_byte_string_ends_in_outcomes(data: bytes) -> None:
    Tally().check(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    members=st.dictionaries(
        st.sampled_from(
            ["op", "before", "after", "source", "schema", "payload", "data", "metadata", "control"]
        ),
        JSON,
        min_size=1,
    )
)
def test_members_of_the_formats_with_anything_in_them_end_in_outcomes(
    members: dict[str, Any],
) -> None:

    Tally().check(json.dumps(members).encode())


def test_mutations_reach_every_outcome_and_many_reasons() -> None:
    """A mutator that only makes garbage would prove nothing; this one gets through."""
    tally, random = Tally(), Random(5)
    for _ in range(MUTATED):
        tally.check(mutate(random.choice(SEEDS), random, SEEDS))
    assert tally.inputs == MUTATED
    for kind in ("Decoded", "Rejected", "Ignored", "Truncation"):
        assert tally.parts[kind] >= 20, kind
    assert len(tally.reasons) >= 20, tally.reasons


def test_mutations_repeat_by_their_seed() -> None:
    first, second = (
        [mutate(seed, Random(f"{at}"), SEEDS) for at, seed in enumerate(SEEDS)] for _ in range(2)
    )
    assert first == second
    assert max(map(len, first)) <= BYTES_MAX
    assert sum(made != seed for made, seed in zip(first, SEEDS, strict=True)) > len(SEEDS) * 0.9


def test_every_split_has_seeds_that_become_more_than_rejections() -> None:
    for split in SPLITS:
        kinds = Counter(type(part).__name__ for seed in seeds(split) for part in decoded(seed))
        assert kinds["Decoded"] >= 3, split


def rejected(index: int, detail: str = "is wrong") -> Rejected:
    return Rejected(index, b"x", RejectedError("wrong", detail))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([], id="no outcome"),
        pytest.param([rejected(0), rejected(0)], id="an index twice"),
        pytest.param([rejected(1), rejected(0)], id="out of order"),
        pytest.param([rejected(-1)], id="a negative index"),
        pytest.param([Ignored(0, "", "debezium")], id="no kind"),
        pytest.param([Ignored(0, "a\nb", "debezium")], id="a kind that spans lines"),
        pytest.param([Ignored(0, "k" * 1000, "debezium")], id="a payload for a kind"),
        pytest.param([SimpleNamespace(index=0)], id="something else"),
    ],
)
def test_the_target_notices_a_broken_promise(parts: list[Any]) -> None:
    with pytest.raises(BrokenPromiseError):
        check_parts(parts)


def test_a_slow_decoder_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "SECONDS_MAX", 0.0)
    with pytest.raises(BrokenPromiseError, match="took"):
        Tally().check(b"{}")


@pytest.mark.skipif(sys.platform != "linux", reason="workers measure memory as Linux does")
def test_the_long_run_counts_every_input_and_finds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness of `make fuzz`, end to end, on few inputs."""
    assert main(["--runs", "8000", "--jobs", "2", "--crashes", str(tmp_path / "crashes")]) == 0
    told = capsys.readouterr().out
    assert "inputs   8,000 in" in told
    assert "Decoded" in told
    assert not (tmp_path / "crashes").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="workers measure memory as Linux does")
def test_the_long_run_keeps_the_bytes_that_break_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers that import a decoder with a fault fail the run and leave its input behind."""
    (tmp_path / "sitecustomize.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    crashes = tmp_path / "crashes"
    assert main(["--runs", "40000", "--jobs", "2", "--crashes", str(crashes)]) == 1
    (found,) = crashes.iterdir()
    assert b"__debezium" in found.read_bytes()
    assert "ZeroDivisionError" in capsys.readouterr().out


# Makes the strict JSON reader of every worker choke on a placeholder.
FAULTY = """
import json
right = json.JSONDecoder.decode
def wrong(self, text, *arguments, **named):
    if "__debezium" in text and self.parse_float is not float:
        1 / 0
    return right(self, text, *arguments, **named)
json.JSONDecoder.decode = wrong
"""
