"""Images as the vision side takes them, for an adapter that trains it: nothing can be encoded ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError
from carefl_secure.model.loader import Base

_Rows = slice | Tensor | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """Images as the vision side takes them: ``values`` [images, tiles, 3, height, width] and the mask of padding."""

    values: Tensor
    mask: Tensor | None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: _Rows, /) -> Pixels:
        """Return some of the images."""
        chosen = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        return Pixels(self.values[chosen], None if self.mask is None else self.mask[chosen])

    def encoded(self, base: Base) -> Tensor:
        """Return the features [tiles, tokens, text width] on the device, differentiable; row i is of tile i only."""
        # An all-zero picture counts as padding in the model; half-grey black it is not.
        mask = None if self.mask is None else self.mask.to(base.device)
        values = self.values.to(base.device, base.dtype)
        found = base.model.model.get_image_features(values, mask, return_dict=True).pooler_output
        return torch.cat(list(found)).view(-1, int(base.processor.image_seq_len), found[0].shape[-1])


def pixels_of(base: Base, images: Sequence[Image.Image]) -> Pixels:
    """Bring images to the size of the vision side."""
    made = base.processor.image_processor([[image] for image in images], return_tensors="pt")
    return Pixels(made["pixel_values"], made.get("pixel_attention_mask"))


@dataclass(frozen=True)
class PixelFeatures:
    """The images of a corpus in place of features, read when indexed; ConfigError where they are cut into tiles."""

    base: Base
    corpus: Corpus

    def __post_init__(self) -> None:
        if self.base.processor.image_processor.do_image_splitting:
            raise ConfigError(
                "an adapter on the vision side is clipped by record, and of a record that is cut into tiles it sees "
                "several; set model.image_splitting=false, or leave connector and vision out of adapter.targets"
            )

    def __len__(self) -> int:
        return len(self.corpus.records)

    def __getitem__(self, rows: _Rows, /) -> Pixels:
        """Read some images."""
        chosen = np.arange(len(self))[rows.numpy() if isinstance(rows, Tensor) else rows].tolist()
        return pixels_of(self.base, [self.corpus.image(i) for i in chosen])

    def select(self, rows: npt.NDArray[np.int64]) -> PixelFeatures:
        """Return some of the records, without reading them."""
        return PixelFeatures(self.base, Subset(self.corpus, tuple(rows.tolist())))
