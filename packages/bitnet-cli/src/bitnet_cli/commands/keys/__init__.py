"""`bitnet keys`: who may use a server, and how much."""

from __future__ import annotations

from cyclopts import App

_COMMANDS = (
    ("create", "A new key, shown this once"),
    ("list", "All keys, without their texts"),
    ("revoke", "Let a key open nothing any more, at once"),
    ("rotate", "A new text for a key"),
    ("usage", "What was used, by key and model"),
    ("audit", "Whether an audit log is whole"),
    ("bill", "What customers have used, for Stripe"),
)


def made() -> App:
    """The commands below `bitnet keys`."""
    app = App(name="keys", help="Keys of a server: who may use it, and how much.", help_format="plaintext")
    for order, (name, said) in enumerate(_COMMANDS):
        app.command(f"bitnet_cli.commands.keys.{name}:{name}", name=name, help=said, sort_key=order)
    return app


keys = made()
