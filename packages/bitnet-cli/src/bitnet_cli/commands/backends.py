"""`bitnet backends`: what can run models here, and why the rest cannot."""

from __future__ import annotations

from ..console import FLAGS, Flags, mark, table


def backends(*, flags: Flags = FLAGS) -> None:
    """What can run models here, and why the rest cannot."""
    import bitnet_core  # noqa: PLC0415
    from bitnet_core import BackendUnavailable  # noqa: PLC0415

    reasons = bitnet_core.backends.available()
    try:
        chosen: str | None = bitnet_core.backends.get().name
    except BackendUnavailable:
        chosen = None
    record = [
        {"name": name, "usable": why is None, "why_not": why, "auto": name == chosen} for name, why in reasons.items()
    ]
    shown = table("backend", "", "")
    for name, why in reasons.items():
        shown.add_row(name, mark(why is None, why or "can run here"), "chosen by auto" if name == chosen else "")
    flags.answer(record, shown)
