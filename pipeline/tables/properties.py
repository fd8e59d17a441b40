"""What a store says of itself in its table's properties: schema version, label spaces, facts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import NotAStore, StoreError, StoreTooNew
from pipeline.label_space import LabelSpace
from pipeline.record import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_VERSION_KEY: Final = "segmill.schema_version"
_SPACE_KEY: Final = "segmill.label_space."
_FACTS_KEY: Final = "segmill.facts."

Properties = dict[str, str]
Facts = dict[str, Any]


def of_new_store(spaces: Iterable[LabelSpace]) -> Properties:
    """Return the properties of a store that holds nothing yet."""
    described = {_SPACE_KEY + space.name: space.to_json() for space in spaces}
    return {_VERSION_KEY: str(SCHEMA_VERSION), **described}


def check_version(url: str, properties: Properties) -> None:
    """Raise unless this segmill can read a table of these properties.

    Raises:
        NotAStore: they are not a label store's.
        StoreTooNew: the store was written in a schema that this segmill does not know.
    """
    if _VERSION_KEY not in properties:
        raise NotAStore(f"{url}: a Delta table, but not a label store of segmill")
    found = int(properties[_VERSION_KEY])
    if found > SCHEMA_VERSION:
        raise StoreTooNew(
            f"{url}: written in schema version {found}, this segmill reads up to "
            f"{SCHEMA_VERSION}; upgrade segmill"
        )


def spaces_in(properties: Properties) -> dict[str, LabelSpace]:
    """Return the label spaces that are described, by name."""
    found = (text for key, text in sorted(properties.items()) if key.startswith(_SPACE_KEY))
    return {space.name: space for space in map(LabelSpace.from_json, found)}


def more_spaces(
    url: str, known: Mapping[str, LabelSpace], spaces: Iterable[LabelSpace]
) -> Properties:
    """Return the properties that describe those of the label spaces that are not known yet.

    Raises:
        StoreError: one is known under the same name with other classes.
    """
    new = {}
    for space in spaces:
        there = known.get(space.name)
        if there is None:
            new[_SPACE_KEY + space.name] = space.to_json()
        elif there != space:
            raise StoreError(
                f"{url}: label space {space.name!r} is there with other classes; "
                f"give yours another name"
            )
    return new


def facts_in(properties: Properties) -> Facts:
    """Return what datasets say of themselves as a whole, by format."""
    return {
        key.removeprefix(_FACTS_KEY): json.loads(text)
        for key, text in sorted(properties.items())
        if key.startswith(_FACTS_KEY)
    }


def more_facts(known: Facts, facts: Mapping[str, Mapping[str, Any]]) -> Properties:
    """Return the properties that hold the facts beside the known ones; new replace old."""
    merged = {name: {**known.get(name, {}), **said} for name, said in facts.items()}
    return {
        _FACTS_KEY + name: json.dumps(said, sort_keys=True)
        for name, said in merged.items()
        if said != known.get(name, {})
    }


def facts_replaced(known: Facts, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return which known facts `more_facts` would replace by others, as "format: name"."""
    return [
        f"{name}: {key}"
        for name, said in sorted(facts.items())
        for key, value in sorted(said.items())
        if key in known.get(name, {}) and known[name][key] != json.loads(json.dumps(value))
    ]
