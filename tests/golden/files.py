"""Reads the golden files: one JSON document each, with a record as it arrives and the parts it must
become.

`record` is the record's JSON as the documents show it (sent without spaces), `text` a record whose
spelling matters, `base64` one that is no text. `expected` lists the parts in order; a member that
is not listed is not compared. `document` says where the shape is described.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Golden:
    """One golden file: its name, the record's bytes and the parts expected of it."""

    name: str
    data: bytes
    expected: list[dict[str, Any]]


def golden_files() -> list[Golden]:
    """Every golden file, by name."""
    return [_read(path) for path in sorted(FOLDER.glob("*/*.json"))]


def _read(path: Path) -> Golden:
    body = json.loads(path.read_text())
    if "record" in body:
        data = json.dumps(body["record"], separators=(",", ":"), ensure_ascii=False).encode()
    else:
        data = base64.b64decode(body["base64"]) if "base64" in body else body["text"].encode()
    return Golden(f"{path.parent.name}/{path.stem}", data, body["expected"])
