"""Where keys are kept, for the commands that look at them."""

from __future__ import annotations

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


def record_of(key: Key) -> dict[str, Any]:
    """What may be shown of a key."""
    names = ("id", "name", "role", "tokens_per_minute", "requests_per_minute", "budget", "period", "customer")
    found = {name: getattr(key, name) for name in (*names, "created", "expires", "revoked")}
    return found | {"models": None if key.models is None else sorted(key.models)}
