"""What the frozen vision side makes of an image: computed once per image, kept on the client."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from carefl_secure.captions.cache import picture_key
from carefl_secure.data.records import Corpus
from carefl_secure.errors import ModelError
from carefl_secure.model.loader import Base
from carefl_secure.model.vision.store import StoredFeatures, note_size
from carefl_secure.progress import Reporter

_PIXELS = 1 << 21  # of one batch: 8 images of 512 pixels a side, 128 of 64
_MOST = 128

_Read = tuple[bytes, Image.Image | None]


@torch.inference_mode()
def encode_images(base: Base, images: Sequence[Image.Image]) -> Tensor:
    """Encode images: [images, tokens, text width], in the base's type, on the CPU; nothing is kept.

    A processor that cuts an image into several tiles raises `ModelError`.
    """
    inputs = base.processor.image_processor(
        [[image] for image in images], do_image_splitting=False, return_tensors="pt"
    )
    pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
    if pixels.shape[1] != 1:
        raise ModelError("the processor cut an image into tiles")
    # An all-zero picture counts as padding in the model; half-grey black it is not.
    output = base.model.model.get_image_features(
        pixels.to(base.device, base.dtype), None if mask is None else mask.to(base.device), return_dict=True
    )
    return torch.stack(list(output.pooler_output)).cpu()


def vision_features(base: Base, corpus: Corpus, reporter: Reporter) -> StoredFeatures:
    """Encode the images of a corpus that ``base.features`` lacks, and return the features of all.

    The result, [records, tokens, text width] in the base's type, is read from the store as it is
    indexed. It is as private as the images: it never leaves the client. Images are decoded by
    several threads; memory holds a few batches of them, however many there are.
    """
    store, count = base.features, len(corpus.records)
    store.refresh(reporter)
    task = f"encoding {count} images of {corpus.name}"
    reporter.start(task, count)
    size = max(1, min(_MOST, _PIXELS // int(base.model.config.vision_config.image_size) ** 2))

    def read(i: int) -> _Read:
        image = corpus.image(i)
        key = bytes.fromhex(picture_key(image))
        return key, None if key in store else image

    def part(batch: list[_Read]) -> tuple[list[bytes], dict[bytes, Image.Image], Tensor | None]:
        missing = {key: image for key, image in batch if image is not None}
        return [key for key, _ in batch], missing, encode_images(base, list(missing.values())) if missing else None

    keys: list[bytes] = []
    noted = False
    with store.writing() as writer:
        for found, missing, features in base.parallel_batches(part, _batches(read, count, size)):
            if features is not None:
                if not noted:
                    note_size(store, count - len(keys), reporter)
                    noted = True
                writer.add(list(missing), features)
            keys += found
            reporter.advance(task, len(found))
    reporter.finish(task)
    return store.features(keys)


def _batches(read: Callable[[int], _Read], count: int, size: int) -> Iterator[list[_Read]]:
    """Read images in threads, two batches ahead of the one in use."""
    indices = iter(range(count))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode") as pool:
        waiting: deque[list[Future[_Read]]] = deque()
        try:
            for _ in range(-(-count // size)):
                while len(waiting) < 3 and (some := list(islice(indices, size))):
                    waiting.append([pool.submit(read, i) for i in some])
                yield [future.result() for future in waiting.popleft()]
        finally:
            for future in (future for some in waiting for future in some):
                future.cancel()
