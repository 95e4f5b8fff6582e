"""`bitnet login`: log in to the hub."""

from __future__ import annotations

import getpass
import sys
from typing import Any

from ..console import FLAGS, Flags
from ..failures import Failed, Refused


def login(*, stdin: bool = False, status: bool = False, logout: bool = False, flags: Flags = FLAGS) -> None:
    """Log in to the hub, for models that ask for it; the token is kept where huggingface_hub keeps it.

    Parameters
    ----------
    stdin
        Read the token from stdin, for scripts.
    status
        Say who is logged in.
    logout
        Forget the token.
    """
    if stdin + status + logout > 1:
        raise Refused("login: --stdin, --status and --logout are different things to do")
    if logout:
        import huggingface_hub  # noqa: PLC0415  # 240 ms

        huggingface_hub.logout()
        flags.answer({"logged_in": False}, "logged out")
        return
    if flags.offline:
        raise Failed("login: the hub must be asked, and the network is off (--offline or BITNET_OFFLINE)")
    if status:
        who = _ask(None)
        flags.answer({"logged_in": True, "name": who}, f"logged in as {who}")
        return
    token = _token(stdin)
    who = _ask(token)
    import huggingface_hub  # noqa: PLC0415

    huggingface_hub.login(token=token, add_to_git_credential=False)
    flags.answer({"logged_in": True, "name": who}, f"logged in as {who}")


def _token(stdin: bool) -> str:
    if not stdin and not sys.stdin.isatty():
        raise Refused("login: there is no terminal to type the token in; pipe it in with --stdin")
    token = (sys.stdin.readline() if stdin else getpass.getpass("token of the hub: ")).strip()
    if not token or len(token) > 200 or not token.isascii() or not token.isprintable():
        raise Refused("login: expected a token of the hub, got something else")
    return token


def _ask(token: str | None) -> str:
    """Whose token it is."""
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError  # noqa: PLC0415

    try:
        found: dict[str, Any] = huggingface_hub.whoami(token=token)
    except LocalTokenNotFoundError as error:
        raise Failed("login: nobody is logged in") from error
    except HfHubHTTPError as error:
        raise Failed("login: the hub does not know this token") from error
    except OSError as error:
        raise Failed(f"login: the hub does not answer: {error}") from error
    return str(found.get("name", "somebody"))
