"""Whether the time to the first token tells a tenant what another one has asked.

    python benchmarks/isolation.py --probes 10000

A victim's prompts stand in the prefix cache. A prober asks half of them and as many that nobody asked, in random
order; the area under the curve says how well the two are told apart by time: 0.5 is by chance, 1.0 always. Beside it
the same for the victim itself, whom the cache serves.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
from itertools import chain

from bitnet_inference import LLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=100, help="of the victim, asked again after each round")
    options = parser.parse_args()
    victim, prober = secrets.token_bytes(32), secrets.token_bytes(32)
    with LLM(threads=1) as llm:
        found = {
            "other_tenant_auc": probe(llm, victim, prober, options.probes, options.prompts),
            "same_tenant_auc": probe(llm, victim, victim, min(options.probes, 1000), options.prompts),
        }
    print(f"another tenant's prompts are told from new ones with an area of {found['other_tenant_auc']:.3f}")
    print(f"one's own with {found['same_tenant_auc']:.3f}")
    print(json.dumps(found))


def probe(llm: LLM, victim: bytes, prober: bytes, probes: int, size: int) -> float:
    """The area under the curve of first-token times."""
    known: list[float] = []
    new: list[float] = []
    while len(known) + len(new) < probes:
        asked = [text() for _ in range(size)]
        for prompt in asked:
            ask(llm, prompt, victim)
        trials = [(known, prompt) for prompt in asked] + [(new, text()) for _ in range(size)]
        random.shuffle(trials)
        for times, prompt in trials:
            times.append(ask(llm, prompt, prober))
    return area(known, new)


def text() -> str:
    words = ("cat", "dog", "sun", "tree", "girl", "boy", "house", "ball", "big", "red", "ran", "saw", "and", "the")
    return " ".join(random.choice(words) for _ in range(60))  # noqa: S311  # a guess, not a secret


def ask(llm: LLM, prompt: str, tenant: bytes) -> float:
    reply = llm.generate(prompt, max_tokens=1, temperature=0.0, tenant=tenant)
    return reply.timings.first_token_s or 0.0


def area(known: list[float], new: list[float]) -> float:
    """How often one of the known is faster than one of the new."""
    ranked = sorted(chain(((one, 0) for one in known), ((one, 1) for one in new)))
    wins = seen = 0
    for _, kind in ranked:
        if kind:
            wins += seen
        else:
            seen += 1
    return wins / (len(known) * len(new))


if __name__ == "__main__":
    main()
