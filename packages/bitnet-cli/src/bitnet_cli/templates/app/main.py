"""A story that is written as you watch. Name a model of yours: python main.py org/model"""

from __future__ import annotations

import sys

from bitnet_inference.llm import LLM


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else None  # None is the small model that is built in
    with LLM(name) as llm:
        prompt = "Once upon a time"
        sys.stdout.write(prompt)
        for piece in llm.write(prompt, max_tokens=100, seed=1):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
