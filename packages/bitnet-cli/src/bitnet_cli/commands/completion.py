"""`bitnet completion`: the completion script of a shell."""

from __future__ import annotations

import sys
from typing import Literal

from ..console import FLAGS, Flags


def completion(shell: Literal["bash", "zsh", "fish", "powershell"], *, flags: Flags = FLAGS) -> None:
    """The completion script of a shell, for `eval "$(bitnet completion bash)"` or a file that the shell reads.

    Parameters
    ----------
    shell
        Whose script.
    """
    from ..main import build  # noqa: PLC0415  # it names this module

    script = build([]).generate_completion(shell=shell)
    if flags.json:
        flags.answer({"shell": shell, "script": script})
    else:
        sys.stdout.write(script)
