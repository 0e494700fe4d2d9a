"""What the frozen vision side makes of an image: computed once per record, kept on the client."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from carefl_secure.data.records import Corpus
from carefl_secure.errors import ModelError
from carefl_secure.model.loader import Base
from carefl_secure.progress import Reporter

_BATCH = 128
_MEMORY: ContextVar[_Memory | None] = ContextVar("vision_features_memory", default=None)


Features = Tensor
"""What the vision tower gives for each record, ``[records, tokens, width]``."""


class _Memory:
    """Features by what they follow from, the least recently used forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key].clone()

    def put(self, key: bytes, features: Tensor) -> None:
        self._held[key] = features.clone()
        while sum(held.nbytes for held in self._held.values()) > self._limit:
            self._held.popitem(last=False)


@contextlib.contextmanager
def cached_features(limit: int = 1 << 30) -> Iterator[None]:
    """Keep features in this process's memory inside the block, for reuse by several runs.

    The key covers the base, its compute type, the processor and every pixel; adapters do not touch
    the frozen vision side. Nothing is written to disk, and all is dropped at the end of the block.
    A nested block uses the memory and the limit (most bytes kept) of the outer one.
    """
    if _MEMORY.get() is not None:
        yield
        return
    token = _MEMORY.set(_Memory(limit))
    try:
        yield
    finally:
        _MEMORY.reset(token)


def _identity(base: Base, corpus: Corpus) -> bytes:
    total = hashlib.sha256(base.digest)
    total.update(f"{base.dtype}\n{base.processor.image_processor.to_json_string()}\n".encode())
    for i in range(len(corpus.records)):
        image = corpus.image(i)
        total.update(f"{image.mode} {image.size}\n".encode())
        total.update(image.tobytes())
    return total.digest()


def vision_features(base: Base, corpus: Corpus, reporter: Reporter) -> Tensor:
    """Encode every image of a corpus: [records, image tokens, text width], in the base's type.

    The result is as private as the images: it never leaves the client. A processor that cuts an
    image into several tiles raises `ModelError`.
    """
    memory = _MEMORY.get()
    key = b"" if memory is None else _identity(base, corpus)
    if memory is not None and (known := memory.get(key)) is not None:
        return known
    features = _encode(base, corpus, reporter)
    if memory is not None:
        memory.put(key, features)
    return features


def _encode(base: Base, corpus: Corpus, reporter: Reporter) -> Tensor:
    count = len(corpus.records)
    task = f"encoding {count} images of {corpus.name}"
    reporter.start(task, count)

    @torch.inference_mode()
    def part(start: int) -> Tensor:
        images = [[corpus.image(i)] for i in range(start, min(count, start + _BATCH))]
        inputs = base.processor.image_processor(images, do_image_splitting=False, return_tensors="pt")
        pixels = inputs["pixel_values"]
        if pixels.shape[1] != 1:
            raise ModelError(f"the processor cut an image of {corpus.name} into tiles")
        # An all-zero picture counts as padding in the model; half-grey black it is not.
        output = base.model.model.get_image_features(
            pixels.to(base.dtype), inputs.get("pixel_attention_mask"), return_dict=True
        )
        return torch.stack(list(output.pooler_output))

    parts: list[Tensor] = []
    for encoded in base.parallel_batches(part, range(0, count, _BATCH)):
        parts.append(encoded)
        reporter.advance(task, len(encoded))
    reporter.finish(task)
    # A copy made outside inference mode may take part in autograd later.
    return torch.cat(parts).clone()
