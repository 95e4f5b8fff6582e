"""Train as a config says: `python -m bitnet_training CONFIG.toml`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from bitnet_core import BitNetError

from . import config as configs


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the run came to its end or was interrupted, 2 where it could not begin or go on."""
    parser = argparse.ArgumentParser(prog="python -m bitnet_training", description="Train a ternary model.")
    parser.add_argument("config", nargs="?", help="a TOML file")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in data.batch=8")
    parser.add_argument("--template", action="store_true", help="print every setting with its default")
    asked = parser.parse_args(arguments)
    if asked.template:
        sys.stdout.write(configs.template())
        return 0
    if asked.config is None:
        parser.error("which config? --template prints one to begin with")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        from .run import run  # noqa: PLC0415  # torch takes seconds, which somebody may interrupt

        run(configs.load(asked.config, asked.set), resume=asked.resume)
    except (BitNetError, ValueError) as error:
        sys.stderr.write(f"bitnet: error: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"bitnet: error: {error.filename or 'the run'}: {error.strerror or error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
