"""What the tombstones table knows of a batch's keys: deletes, patches that wait for a row, and the
truncation that ended every row before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from freshet.arrow import DELETED, PATCHES, POSITION, VERSION
from freshet.patch import Patch, Place, State, deleted, join, patches_of
from lake.table import View

# The newest truncation, "version position": one property instead of a tombstone for every key.
FLOOR = "freshet.truncated"
# Below any change: versions are positive.
NO_FLOOR: Place = (0, "")


def floor_of(view: View) -> Place:
    """Version and position of the newest truncation a view of the tombstones shows."""
    text = view.table.metadata.properties.get(FLOOR)
    if text is None:
        return NO_FLOOR
    version, _, position = text.partition(" ")
    return int(version), position


def floor_text(floor: Place) -> dict[str, str]:
    """The property that `floor_of` reads."""
    return {FLOOR: f"{floor[0]} {floor[1]}"}


class Known:
    """Tombstones, and what waits, for keys of a batch. A truncation is a tombstone of each."""

    def __init__(
        self, key_at: Sequence[int], rows: pa.Table, texts: Sequence[str], floor: Place
    ) -> None:
        columns = [
            rows.column(name).to_pylist() if key_at else [] for name in (VERSION, POSITION, PATCHES)
        ]
        found = zip(key_at, *columns, strict=True)
        self._texts, self._floor = texts, floor
        self._at: dict[int, Place] = (
            dict.fromkeys(range(len(texts)), floor) if floor > NO_FLOOR else {}
        )
        self._states: dict[int, State] = {}
        for at, version, position, patches in found:
            state = join(deleted(version, position, patches_of(patches)), deleted(*floor))
            self._at[at] = state.place
            if state.patches:
                self._states[at] = state
        self._index = {text: at for at, text in enumerate(texts)}

    @property
    def patched(self) -> set[int]:
        """Positions of keys with patches that wait."""
        return set(self._states)

    def state(self, at: int) -> State | None:
        """What is known of a key, None for nothing."""
        if at in self._states:
            return self._states[at]
        place = self._at.get(at)
        return None if place is None else deleted(*place)

    def buries(self, text: str, version: int, position: str) -> bool:
        """True if the tombstone of a delete that removes a row is there. Its position matters: the
        row may tie with it, and must stay removed when it comes again.
        """
        place = self._at.get(self._index[text])
        return place is not None and place >= (version, position)

    def forewarns(self, text: str, version: int, _position: str = "") -> bool:
        """True if the tombstone of a delete that met no row is there, or of one just like it."""
        place = self._at.get(self._index[text])
        return place is not None and place[0] == version

    def overrules(self, at: int, version: int, position: str, *, is_delete: bool) -> bool:
        """True if a change lost to the tombstone of its key."""
        place = self._at.get(at)
        if place is None:
            return False
        if version == place[0]:
            return not is_delete and position <= place[1]
        return version < place[0]

    def waiting(self, text: str) -> Mapping[str, Patch]:
        """The patches known to wait for a key's row."""
        state = self._states.get(self._index[text])
        return {} if state is None else state.patches

    def unknown_patches(self, text: str, state: State) -> set[Place]:
        """Places of the patches of a state that are not known to wait."""
        known = self.waiting(text)
        return {one.place for name, one in state.patches.items() if known.get(name) != one}

    def lacks(self, text: str, state: State, *, had_row: bool) -> bool:
        """True if the state of a key without a row says more than is known."""
        known = self.state(self._index[text])
        if known is None:
            return state.version > 0 or bool(state.patches)
        base = known.place >= state.place if had_row else known.version >= state.version
        return not base or bool(self.unknown_patches(text, state))

    def split(self, winners: pa.Table, apart: set[int]) -> tuple[list[int], list[int]]:
        """Positions of changes that stand against their tombstone, and of those it overrules; but
        for those `apart`.
        """
        columns = [winners.column(name).to_pylist() for name in (VERSION, POSITION, DELETED)]
        overruled = [
            at
            for at in sorted(self._at)
            if at not in apart
            and self.overrules(at, columns[0][at], columns[1][at], is_delete=columns[2][at])
        ]
        lost = apart.union(overruled)
        return [at for at in range(winners.num_rows) if at not in lost], overruled

    def as_deletes(self, winners: pa.Table, overruled: list[int]) -> pa.Table:
        """Deletes at the tombstones' versions for the overruled keys: a row under one must go."""
        table = winners.take(pa.array(overruled, pa.int64()))
        for name, values in (
            (VERSION, [self._at[at][0] for at in overruled]),
            (POSITION, [self._at[at][1] for at in overruled]),
            (DELETED, [True] * len(overruled)),
        ):
            column = table.schema.field(name)
            table = table.set_column(
                table.schema.get_field_index(name), column, pa.array(values, column.type)
            )
        return table
