"""Images that are cut into tiles: how many, and their features, as many rows as tiles."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.smolvlm.image_processing_pil_smolvlm import get_resize_output_image_size

from carefl_secure.errors import ConfigError
from carefl_secure.model.prompts import WHOLE, Grid, Layout, Prompter, PromptForm, Shots
from carefl_secure.model.vision.store import StoredFeatures

MOST = 6  # most rows or columns that the tokens of the checkpoints can name


def cut_images(processor: Any, form: PromptForm) -> None:
    """Let a processor cut images as a form says; ConfigError where their tiles could not be named."""
    images = processor.image_processor
    images.do_image_splitting = form.image_splitting
    if form.longest_edge is not None:
        images.size = type(images.size)(longest_edge=form.longest_edge)
    edge, tile = images.size["longest_edge"], images.max_image_size["longest_edge"]
    if form.image_splitting and edge > MOST * tile:
        raise ConfigError(
            f"an image of {edge} pixels would be cut into more than {MOST} tiles of {tile} a side, and the checkpoint "
            f"names no more; set model.longest_edge to {MOST * tile} or less"
        )


def image_settings(processor: Any) -> dict[str, Any]:
    """Return the arguments that make an image processor do what ours does."""
    images = processor.image_processor
    return {"do_image_splitting": images.do_image_splitting, "size": {"longest_edge": images.size["longest_edge"]}}


def image_cost(processor: Any, prompter: Prompter, frames: int = 1) -> str:
    """Say what a record costs: tiles or frames, and tokens of the prompt for a square image."""
    images, tokens = processor.image_processor, int(processor.image_seq_len)
    if frames > 1:
        return (
            f"A record is a clip of up to {frames} frames of {tokens} tokens, {frames * tokens} in all (model.frames)."
        )
    if not images.do_image_splitting:
        return f"An image is one tile of {tokens} tokens; it is not cut (model.image_splitting)."
    edge = images.size["longest_edge"]
    grid = tile_grid(processor, (edge, edge))
    length, one = (int(prompter.batch([""], [cut])[0].shape[1]) for cut in (grid, WHOLE))
    return (
        f"A square image is {tiles_in(grid)} tiles of {tokens} tokens: a prompt of {length} tokens where one tile "
        f"takes {one}, and as much more time and memory."
    )


def tile_grid(processor: Any, size: tuple[int, int]) -> Grid:
    """Return the rows and columns of tiles of an image of ``size``, (width, height), as the processor cuts it."""
    images = processor.image_processor
    if not images.do_image_splitting:
        return WHOLE
    edge, tile = images.size["longest_edge"], images.max_image_size["longest_edge"]
    shape = np.broadcast_to(np.uint8(0), (1, size[1], size[0]))
    height, width = get_resize_output_image_size(shape, edge)
    # The processor rounds the longer side up to whole tiles first, then the shorter one of the same ratio.
    ratio = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / ratio) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * ratio) / tile) * tile
    return WHOLE if max(height, width) <= tile else (height // tile, width // tile)


def tiles_in(layout: Layout) -> int:
    """Return the number of tiles of an image, those of the grid and the whole picture, or of frames of a clip."""
    return len(layout.seconds) if isinstance(layout, Shots) else layout[0] * layout[1] + 1


def tile_keys(image: bytes, grid: Grid) -> list[bytes]:
    """Return the key of each tile of an image in the store; the whole picture comes last."""
    if grid == WHOLE:
        return [image]
    return [hashlib.sha256(image + bytes([place])).digest() for place in range(tiles_in(grid))]


_Rows = slice | Tensor | npt.NDArray[np.int64]


def _places(grids: Sequence[Layout], records: _Rows) -> tuple[npt.NDArray[np.int64], tuple[Layout, ...]]:
    """Return the places of some images' tiles among those of all, and how these images are cut."""
    counts = np.array([tiles_in(grid) for grid in grids], np.int64)
    ends = np.cumsum(counts)
    chosen = np.arange(len(grids))[records.numpy() if isinstance(records, Tensor) else records].tolist()
    places = [np.arange(ends[i] - counts[i], ends[i]) for i in chosen]
    return np.concatenate([np.zeros(0, np.int64), *places]), tuple(grids[i] for i in chosen)


@dataclass(frozen=True)
class Tiles:
    """Features of images that are cut differently, or of clips: [tiles, tokens, width], record after record."""

    tiles: Tensor
    grids: tuple[Layout, ...]

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, records: _Rows, /) -> Tiles:
        """Return those of some images."""
        places, grids = _places(self.grids, records)
        return Tiles(self.tiles[torch.from_numpy(places)], grids)

    def to(self, device: torch.device) -> Tiles:
        """Return a copy on a device."""
        return Tiles(self.tiles.to(device), self.grids)

    def whole(self) -> Tensor:
        """Return the features of the whole pictures alone, of clips the mean of frames, [records, tokens, width]."""
        parts = zip(torch.split(self.tiles, [tiles_in(grid) for grid in self.grids]), self.grids, strict=True)
        found = [part.mean(0) if isinstance(grid, Shots) else part[-1] for part, grid in parts]
        return torch.stack(found) if found else self.tiles[:0]


def whole_pictures(features: Tensor | Tiles) -> Tensor:
    """Return the features of images, [images, tokens, width]; of cut ones, those of the whole pictures."""
    return features.whole() if isinstance(features, Tiles) else features


@dataclass(frozen=True)
class TiledFeatures:
    """Features in a store of images that are cut differently, or of clips; indexing reads those records."""

    rows: StoredFeatures  # the tiles of all records
    grids: tuple[Layout, ...]  # how each is cut

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, records: _Rows, /) -> Tiles:
        """Read the features of some records."""
        some = self.select(records)
        return Tiles(some.rows[:], some.grids)

    def select(self, records: _Rows) -> TiledFeatures:
        """Return some of the records, without reading them."""
        places, grids = _places(self.grids, records)
        return TiledFeatures(self.rows.select(places), grids)
