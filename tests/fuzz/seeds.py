"""The inputs fuzzing starts from: every golden file, and the records of `events/`."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.golden.files import golden_files

EVENTS = Path(__file__).parents[2] / "events"
# Which golden folders a split starts from; `mixed` takes everything.
SPLITS = ("native", "debezium", "dms", "mixed")


def seeds(split: str) -> list[bytes]:
    """The seeds of one split, shortest first, none twice."""
    golden = {
        item.data for item in golden_files() if split == "mixed" or item.name.startswith(split)
    }
    return sorted(golden | _recorded(split), key=lambda data: (len(data), data))


def _recorded(split: str) -> set[bytes]:
    """Records of the event files that Lambda would hand over."""
    wanted = {"native": ("packed", "poison", "zstd")}.get(split, (split,))
    return {
        base64.b64decode(record["kinesis"]["data"])
        for path in EVENTS.glob("kinesis_*.json")
        for record in json.loads(path.read_text()).get("Records", ())
        if split == "mixed" or path.stem.removeprefix("kinesis_") in wanted
    }
