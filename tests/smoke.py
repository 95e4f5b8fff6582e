"""What the installed packages must do with nothing around them: `python smoke.py MODEL`. Not collected by pytest."""

from __future__ import annotations

import sys
from pathlib import Path


def main(path: str) -> int:
    """Run the model a few tokens, and prove whose code it was."""
    import bitnet_core

    if not Path(bitnet_core.__file__).is_relative_to(sys.prefix):
        print(f"error: {bitnet_core.__file__} is not of the environment {sys.prefix}", file=sys.stderr)
        return 1
    model = bitnet_core.load(path)
    backend = bitnet_core.backends.get("auto")
    runner = backend.load(model)
    tokenizer = model.tokenizer
    if tokenizer is None:
        print(f"error: {path} has no tokenizer", file=sys.stderr)
        return 1
    tokens = bitnet_core.generate(runner, tokenizer.encode("Once upon a time"), count=8)
    text = "".join(tokenizer.stream(tokens, continues=True))
    foreign = {"torch", "transformers"} & set(sys.modules)
    print(f"bitnet_core {bitnet_core.__version__} on {backend.name}: {text!r}")
    return 0 if text.strip() and not foreign else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
