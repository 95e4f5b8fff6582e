"""Which backends are installed, found by name through the entry points of the group `bitnet.backends`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from .errors import BackendUnavailable
from .model import Backend

GROUP = "bitnet.backends"
API = 1  # of Backend, Runner, Cache and Step: raised when an old backend would no longer fit


def names() -> list[str]:
    """The names of all installed backends; nothing is imported."""
    return sorted(_points())


def available() -> dict[str, str | None]:
    """Every installed backend with the reason why it cannot run here, or None where it can."""
    return {name: reason for name, (_, reason) in sorted(_examined().items())}


def get(name: str = "auto") -> Backend:
    """A backend by name; "auto" is the one of the highest priority that can run here."""
    if name != "auto":
        points = _points()
        if name not in points:
            raise BackendUnavailable(f"no backend {name!r} is installed; there are {', '.join(sorted(points))}")
        backend, reason = _examine(points[name])
        if backend is None or reason is not None:
            raise BackendUnavailable(f"backend {name!r} cannot run here: {reason}")
        return backend
    usable = [backend for backend, reason in _examined().values() if backend is not None and reason is None]
    if not usable:
        raise BackendUnavailable("no backend can run here; reinstall bitnet-core, which brings the numpy backend")
    return max(usable, key=lambda backend: backend.priority)


def _points() -> dict[str, EntryPoint]:
    return _by_name(list(entry_points(group=GROUP)))


def _by_name(points: Sequence[EntryPoint]) -> dict[str, EntryPoint]:
    """Entry points by name; refuses two that claim one name, so that neither wins by chance."""
    found: dict[str, EntryPoint] = {}
    for point in points:
        # An editable install and its wheel may both list the same thing.
        if point.name in found and found[point.name].value != point.value:
            raise BackendUnavailable(
                f"two backends are named {point.name!r}: {found[point.name].value} and {point.value}; uninstall one"
            )
        found[point.name] = point
    return found


def _examined() -> dict[str, tuple[Backend | None, str | None]]:
    return {name: _examine(point) for name, point in _points().items()}


def _examine(point: EntryPoint) -> tuple[Backend | None, str | None]:
    """The backend, and why it cannot run; one that fails to import must not take the others with it."""
    try:
        backend = point.load()
    except Exception as error:  # noqa: BLE001  # a plug-in may raise anything at all
        return None, f"importing {point.value} failed: {type(error).__name__}: {error}"
    if not isinstance(backend, Backend):
        return None, f"{point.value} is not a bitnet_core.Backend but {type(backend).__name__}"
    if backend.api != API:
        return None, f"it was made for backend API {backend.api}, and this is {API}; upgrade the older of the two"
    return backend, backend.why_not()
