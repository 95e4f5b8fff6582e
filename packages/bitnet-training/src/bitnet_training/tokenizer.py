"""A tokenizer of a training text's own: byte-level BPE, so that no text is beyond it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitnet_core import FormatError
from bitnet_core.durable import replacing
from bitnet_core.tokenizer import Tokenizer as Finished
from bitnet_core.vocabularies import folders

END = "<|endoftext|>"  # id 0: before each document, and after it


def train(texts: Iterable[str], size: int, folder: Path) -> Finished:
    """Learn `size` tokens from texts, and keep them in a folder; 257 are the bytes and the end of a document."""
    if size < 257:
        raise ValueError(f"size: at least 257 tokens, for all bytes and the end of a document, got {size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    # The vocabulary last: a folder that has it has all.
    for name, text in (("tokenizer_config.json", json.dumps(config)), ("tokenizer.json", tokenizer.to_str())):
        with replacing(folder / name) as stream:
            stream.write(text.encode())
    vocabulary = folders.read_folder(folder)
    if vocabulary is None:
        raise FormatError(folder, "tokenizer.json", "the file just written", "none")
    return Finished(vocabulary)
