"""`bitnet bench`: the machine, kernels, generation, rivals and quality, measured and kept."""

from __future__ import annotations

from cyclopts import App

_COMMANDS = (
    ("machine", "The ceilings: bandwidth of memory, multiplications, caches"),
    ("kernels", "Conformance cases on every instruction set"),
    ("generate", "Prompt and decode at depths and batches, load time, memory"),
    ("rivals", "Beside llama.cpp, bitnet.cpp and transformers, in turns"),
    ("quality", "Perplexity, agreement and divergence"),
    ("train", "Steps of training a small model from random numbers"),
    ("synth", "Write a model of a real shape with random trits"),
    ("suite", "Run what a TOML file lists"),
    ("compare", "Two runs: better, worse or within noise"),
    ("history", "Earlier runs, as a table, as files or as a page"),
)


def made() -> App:
    """The commands below `bitnet bench`."""
    app = App(name="bench", help="Measure: every run is kept, and compared with earlier ones.", help_format="plaintext")
    for order, (name, said) in enumerate(_COMMANDS):
        app.command(f"bitnet_cli.commands.bench.{name}:{name}", name=name, help=said, sort_key=order)
    return app


bench = made()
