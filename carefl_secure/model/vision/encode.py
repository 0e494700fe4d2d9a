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
from carefl_secure.data.clips import frames_of, most_frames
from carefl_secure.data.records import Corpus
from carefl_secure.errors import ModelError
from carefl_secure.model.loader import Base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import Grid, Layout, Shots
from carefl_secure.model.vision.pixels import PixelFeatures, Pixels
from carefl_secure.model.vision.store import StoredFeatures, note_size
from carefl_secure.model.vision.tiles import TiledFeatures, Tiles, tile_grid, tile_keys
from carefl_secure.progress import Reporter

_PIXELS = 1 << 21  # of one batch: 8 images of 512 pixels a side, 128 of 64
_MOST = 128

AnyFeatures = StoredFeatures | TiledFeatures | PixelFeatures
_Read = tuple[Layout, list[tuple[bytes, Grid, Image.Image | None]]]  # a record and its pictures


@torch.inference_mode()
def encode_images(base: Base, images: Sequence[Image.Image]) -> Tensor | Tiles:
    """Encode images on the CPU: [images, tokens, width] in the base's type, or `Tiles` where they are cut."""
    grids = tuple(tile_grid(base.processor, image.size) for image in images)
    inputs = base.processor.image_processor(
        [[image] for image in images], return_row_col_info=True, return_tensors="pt"
    )
    cut = [(int(row[0]), int(column[0])) for row, column in zip(inputs["rows"], inputs["cols"], strict=True)]
    if cut != list(grids):
        raise ModelError(
            f"the processor cut images into {cut} tiles, not {list(grids)}; set model.image_splitting=false"
        )
    tiles = Pixels(inputs["pixel_values"], inputs.get("pixel_attention_mask")).encoded(base).cpu()
    return Tiles(tiles, grids) if base.processor.image_processor.do_image_splitting else tiles


def encode_record(base: Base, corpus: Corpus, index: int) -> Tensor | Tiles:
    """Encode one record of a corpus, as `encode_images` does."""
    images, seconds = frames_of(corpus, index)
    found = encode_images(base, images)
    return found if seconds is None or isinstance(found, Tiles) else Tiles(found, (Shots(seconds),))


def vision_features(base: Base, corpus: Corpus, reporter: Reporter) -> StoredFeatures | TiledFeatures:
    """Encode the images of a corpus that ``base.features`` lacks, and return the features of all.

    The result, [records, tokens, text width] in the base's type, is read from the store as it is indexed. It is as
    private as the images: it never leaves the client. Images are decoded by several threads; memory holds a few
    batches of them, however many there are. Where images are cut into tiles, or a record is a clip, the result is
    `TiledFeatures`; each frame is kept once, whatever clips have it.
    """
    store, count = base.features, len(corpus.records)
    store.refresh(reporter)
    task = f"encoding {count} images of {corpus.name}"
    reporter.start(task, count)
    most = 17 if base.processor.image_processor.do_image_splitting else most_frames(corpus)
    size = max(1, min(_MOST, _PIXELS // int(base.model.config.vision_config.image_size) ** 2) // max(1, most))

    def read(i: int) -> _Read:
        images, seconds = frames_of(corpus, i)
        pictures: list[tuple[bytes, Grid, Image.Image | None]] = []
        for image in images:
            grid = tile_grid(base.processor, image.size)
            key = bytes.fromhex(picture_key(image))
            pictures.append((key, grid, None if all(one in store for one in tile_keys(key, grid)) else image))
        return pictures[0][1] if seconds is None else Shots(seconds), pictures

    def part(batch: list[_Read]) -> tuple[list[tuple[Layout, list[bytes]]], list[bytes], Tensor | None]:
        missing = {key: (grid, image) for _, held in batch for key, grid, image in held if image is not None}
        names = [one for key, (grid, _) in missing.items() for one in tile_keys(key, grid)]
        made = encode_images(base, [image for _, image in missing.values()]) if missing else None
        rows = [(layout, [one for key, grid, _ in held for one in tile_keys(key, grid)]) for layout, held in batch]
        return rows, names, made.tiles if isinstance(made, Tiles) else made

    keys: list[tuple[Layout, list[bytes]]] = []
    noted = False
    with store.writing() as writer:
        for found_keys, missing, features in base.parallel_batches(part, _batches(read, count, size)):
            if features is not None:
                if not noted:
                    note_size(store, count - len(keys), reporter, tiles=-(-len(missing) // len(found_keys)))
                    noted = True
                writer.add(missing, features)
            keys += found_keys
            reporter.advance(task, len(found_keys))
    reporter.finish(task)
    found = store.features([one for _, names in keys for one in names])
    return TiledFeatures(found, tuple(layout for layout, _ in keys)) if most else found


def record_features(adapter: Adapter, corpus: Corpus, reporter: Reporter) -> AnyFeatures:
    """Return what a scorer reads of a corpus: stored features, or images where its adapter trains the vision side."""
    if adapter.trains_vision:
        return PixelFeatures(adapter.base, corpus)
    return vision_features(adapter.base, corpus, reporter)


def frozen_features(adapter: Adapter, corpus: Corpus, reporter: Reporter) -> Tensor | Tiles:
    """Return what the frozen base makes of a corpus, in memory."""
    with adapter.disabled():
        return vision_features(adapter.base, corpus, reporter)[:]


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
