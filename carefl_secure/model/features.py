"""What the frozen vision side makes of an image: computed once per record, kept on the client."""

from __future__ import annotations

import torch
from torch import Tensor

from carefl_secure.data.records import Corpus
from carefl_secure.errors import ModelError
from carefl_secure.model.loader import Base
from carefl_secure.progress import Reporter

__all__ = ["vision_features"]

_BATCH = 128


def vision_features(base: Base, corpus: Corpus, reporter: Reporter) -> Tensor:
    """Encode every image of a corpus with vision tower and connector.

    The result is as private as the images: it never leaves the client.

    Parameters
    ----------
    base : Base
    corpus : Corpus
    reporter : Reporter

    Returns
    -------
    Tensor, shape [records, image tokens, text width], in the base's compute type

    Raises
    ------
    ModelError
        If the processor cuts an image into several tiles.
    """
    count = len(corpus.records)
    task = f"encoding {count} images of {corpus.name}"
    reporter.start(task, count)
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            stop = min(count, start + _BATCH)
            images = [[corpus.image(i)] for i in range(start, stop)]
            inputs = base.processor.image_processor(
                images, do_image_splitting=False, return_tensors="pt"
            )
            pixels = inputs["pixel_values"]
            if pixels.shape[1] != 1:
                raise ModelError(f"the processor cut an image of {corpus.name} into tiles")
            # An all-zero picture counts as padding in the model; half-grey black it is not.
            output = base.model.model.get_image_features(
                pixels.to(base.dtype), inputs.get("pixel_attention_mask"), return_dict=True
            )
            parts.append(torch.stack(list(output.pooler_output)))
            reporter.advance(task, stop - start)
    reporter.finish(task)
    # A copy made outside inference mode may take part in autograd later.
    return torch.cat(parts).clone()
