"""What the installed packages must do with nothing around them: `python smoke.py MODEL`. Not collected by pytest.

First the library writes a few words, then a newcomer's commands run one after another, a chat on a terminal among them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path


def main(path: str) -> int:
    """Run the model a few tokens, prove whose code it was, and take the first steps of somebody new."""
    import bitnet_inference

    if not Path(bitnet_inference.__file__).is_relative_to(sys.prefix):
        print(f"error: {bitnet_inference.__file__} is not of the environment {sys.prefix}", file=sys.stderr)
        return 1
    with bitnet_inference.LLM(path) as llm:
        text = llm.generate("Once upon a time", max_tokens=8)
        print(f"bitnet_inference {bitnet_inference.__version__} on {llm.backend.name}: {str(text)!r}")
    foreign = {"torch", "transformers"} & set(sys.modules)
    return 1 if not text.strip() or foreign else first_steps(path)


def first_steps(model: str) -> int:
    """Each command, how long it took, and what it said where it failed."""
    steps = [
        ["doctor"],
        ["run", "Once upon a time", "--max-tokens", "20"],
        ["convert", model, "stories.gguf", "--to", "tq2_0", "--lossy"],
        ["verify", "stories.gguf"],
        ["bench", "generate", "stories.gguf", "--prompt", "64", "--tokens", "16", "--threads", "1,2", "--json"],
        ["report", "stories.gguf", model, "--output", "report.html"],
    ]
    for step in steps:
        start = time.perf_counter()
        done = subprocess.run([command(), *step], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        print(f"bitnet {' '.join(step[:2])}: {time.perf_counter() - start:.1f} s")
        if done.returncode:
            print(f"error: it ended with {done.returncode}: {done.stderr}{done.stdout}", file=sys.stderr)
            return 1
    return 0 if sys.platform == "win32" else chat()


def chat() -> int:
    """A question and a farewell, on a pseudo-terminal."""
    import pty  # not on Windows

    start = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm"
        os.execv(command(), ["bitnet", "chat", "--max-tokens", "20"])  # noqa: S606  # our own command
    os.write(terminal, b"Once upon a time\r/exit\r")
    said = b""
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:  # how a pseudo-terminal ends on Linux
        pass
    _, status = os.waitpid(child, 0)
    print(f"bitnet chat: {time.perf_counter() - start:.1f} s")
    if status or len(said) < 100:
        print(f"error: it ended with {status}: {said.decode(errors='replace')}", file=sys.stderr)
        return 1
    return 0


def command() -> str:
    """The installed `bitnet`."""
    return str(Path(sys.executable).with_name("bitnet.exe" if os.name == "nt" else "bitnet"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
