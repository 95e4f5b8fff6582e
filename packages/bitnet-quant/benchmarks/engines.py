"""One measurement of one engine: `python engines.py llama|ours:HEAD:ISA FILE THREADS` prints JSON.

A prompt of 512 tokens, then 128 tokens one by one behind a prompt of 8; the likeliest token is looked for each time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

PROMPT, SHORT, DECODE = 512, 8, 128


def main(engine: str, path: str, threads: int) -> None:
    begun = time.perf_counter()
    forward, forget = (llama if engine == "llama" else ours)(path, threads, engine.partition(":")[2])
    loaded = time.perf_counter() - begun
    tokens = np.random.default_rng(1).integers(0, 128256, PROMPT).astype(np.int32)
    forward(tokens[:SHORT])
    forget()
    begun = time.perf_counter()
    forward(tokens)
    prompt = PROMPT / (time.perf_counter() - begun)
    forget()
    token = forward(tokens[:SHORT])
    begun = time.perf_counter()
    for _ in range(DECODE):
        token = forward(np.array([token], np.int32))
    decode = DECODE / (time.perf_counter() - begun)
    print(json.dumps({"prompt": prompt, "decode": decode, "load": loaded}))


Engine = tuple[Callable[[np.ndarray], int], Callable[[], None]]


def ours(path: str, threads: int, how: str) -> Engine:
    import bitnet_core
    from bitnet_core.formats import gguf
    from bitnet_core.model import Reach
    from bitnet_quant.cpu import load

    head, _, isa = how.partition(":")
    runner = load(gguf.load(path), threads=threads, head=head, isa=isa)
    cache = runner.new_cache()

    def forward(tokens: np.ndarray) -> int:
        (logits,) = runner.forward([bitnet_core.Step(tokens, cache, reach=Reach())])
        return int(logits.argmax())

    return forward, lambda: cache.truncate(0)


def llama(path: str, threads: int, _: str) -> Engine:
    import llama_cpp as c

    c.llama_backend_init()
    c.llama_log_set(_silent, None)
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    options = c.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 1024, PROMPT, PROMPT
    options.n_threads = options.n_threads_batch = threads
    context = c.llama_init_from_model(model, options)
    size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))

    def forward(tokens: np.ndarray) -> int:
        array = (c.llama_token * len(tokens))(*tokens.tolist())
        if c.llama_decode(context, c.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, -1), (size,)).argmax())

    return forward, lambda: c.llama_memory_clear(c.llama_get_memory(context), True)


def _silence() -> object:
    try:
        import llama_cpp as c
    except ImportError:
        return None
    return c.llama_log_callback(lambda *_: None)


_silent = _silence()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
