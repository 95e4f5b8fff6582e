"""Where keys are kept, for the commands that look at them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ...failures import Refused

if TYPE_CHECKING:
    from bitnet_inference.server.keys import Key, Keys

Place = Annotated[
    str, Parameter(name=["--keys", "-k"], help="The database of keys that bitnet serve --keys reads: a file or a URL.")
]

DEFAULT = "keys.sqlite"


@contextmanager
def opened(place: str, *, new: bool = False) -> Iterator[Keys]:
    """The keys of a database, which only `new` makes."""
    from bitnet_inference.server.keys import Keys  # noqa: PLC0415
    from bitnet_inference.server.store import Store  # noqa: PLC0415

    if not new and "://" not in place and not Path(place).is_file():
        raise Refused(f"{place}: no such database of keys; bitnet keys create makes one")
    with Store(place) as store:
        yield Keys(store)


def id_of(kept: Keys, said: str) -> str:
    """The id of a key, of which somebody said the id, or a name that only one living key has."""
    keys = kept.list()
    if any(key.id == said for key in keys):
        return said
    living = [key.id for key in keys if key.name == said and key.live(time.time())]
    if not living:
        raise Refused(f"{said}: no key has this id, and no living one this name; bitnet keys list shows all")
    if len(living) > 1:
        raise Refused(f"{said}: {len(living)} living keys have this name; give an id: {', '.join(living)}")
    return living[0]


def record_of(key: Key) -> dict[str, Any]:
    """What may be shown of a key."""
    names = ("id", "name", "role", "tokens_per_minute", "requests_per_minute", "budget", "period", "customer")
    found = {name: getattr(key, name) for name in (*names, "created", "expires", "revoked")}
    return found | {"models": None if key.models is None else sorted(key.models)}
