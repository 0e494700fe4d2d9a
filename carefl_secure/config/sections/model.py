"""The sections ``model`` and ``adapter``: what is frozen, and what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from carefl_secure.config.sections.base import Section, Seed

Target = Literal["q", "k", "v", "o", "gate", "up", "down", "connector", "vision"]
_AUTO: Any = "auto"


def default_targets(base: str) -> tuple[Target, ...]:
    """Return the layers that ``adapter.targets=auto`` adapts: all of the embedded model, q and v of any other."""
    return ("q", "k", "v", "o", "gate", "up", "down") if base == "embedded" else ("q", "v")


class ModelConfig(Section):
    """The frozen base model."""

    base: str = Field(default="embedded", min_length=1, description='"embedded", a hub id, or the path of a snapshot')
    revision: str | None = Field(
        default=None, description="commit of a hub model; null takes the newest that is cached"
    )
    quantization: Literal["nf4", "int8", "none"] = Field(
        default="nf4",
        description="how the frozen weights of the text model are stored; int8 only where no "
        "record is clipped alone, under privacy.unit none or client",
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="the type that activations are computed in; auto is float32 for the embedded model, "
        "bfloat16 for any other",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="where the model computes and gradients are clipped: auto, cpu, cuda, cuda:N or mps; auto is "
        "the present CUDA device, else the CPU",
    )
    feature_cache: Literal["auto"] | Path | None = Field(
        default="auto",
        description="folder that keeps the vision features of images, for later runs; as private as the images. "
        "auto: features in $CAREFL_CACHE or the user's cache folder; null keeps them in memory",
    )
    prompt: str = Field(
        default="default",
        min_length=1,
        description="task prompt: default, list, scene, face, expert, or the path of a text file "
        "with the placeholders {question} and {labels} of the label space",
    )
    end_answers: bool | None = Field(
        default=None,
        description="whether labels are scored and trained with the end-of-utterance token, so that "
        "the tuned model stops behind a label; null: for every base but the embedded one, whose "
        "labels were pretrained without it",
    )
    image_splitting: bool = Field(
        default=False,
        description="cut each image into tiles of the checkpoint's size, and the whole picture: finer detail for many "
        "times the tokens, 17 tiles in place of one for a square image and the settings of the hub",
    )
    longest_edge: int | None = Field(
        default=None,
        ge=32,
        le=4096,
        description="length in pixels that the longer side of an image is brought to before it is cut; null: that of "
        "the checkpoint",
    )
    frames: int = Field(
        default=1,
        ge=1,
        le=12,
        description="most frames of one record: above 1 a record is a clip (C-EXPR-DB; CAER-S with clips.csv), its "
        "frames evenly spaced and asked about as SmolVLM2 asks about a video, each for the tokens of an image. "
        "The unit record then protects a whole clip",
    )
    context: Literal["none", "own", "shuffled", "wrong", "constant"] = Field(
        default="none",
        description="caption that precedes the question: the record's own; that of another, "
        "public record (shuffled, or wrong: one with other labels); one constant caption; or none",
    )
    context_cache: Path | None = Field(
        default=None,
        description="folder that 'carefl-secure caption' wrote; null uses the describer of the synthetic corpus",
    )
    context_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="share of records, of clients and server, that get no caption"
    )
    context_error: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="probability that the describer states a fact of a scene wrongly"
    )

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.context == "none" and self.context_dropout:
            raise ValueError("model.context_dropout has no effect under model.context=none; leave it out")
        if self.frames > 1 and (self.context != "none" or self.image_splitting):
            raise ValueError("model.frames above 1 goes with model.context=none and model.image_splitting=false")
        described = self.context in ("own", "shuffled", "wrong")
        if not described and self.context_cache is not None:
            raise ValueError(
                f"model.context_cache has no effect under model.context={self.context}; leave it "
                "out, or set model.context=own"
            )
        if self.context_error and (not described or self.context_cache is not None):
            raise ValueError(
                "model.context_error sets the error rate of the describer, which is not used here; "
                "leave it out, or leave model.context_cache out and set model.context=own"
            )
        if self.base == "embedded" and self.revision is not None:
            raise ValueError(
                "model.revision has no meaning for the embedded model; leave it out, or name a hub id in model.base"
            )
        return self


class AdapterConfig(Section):
    """The low-rank adapter: the only weights that are trained."""

    rank: int = Field(default=8, ge=1, le=256, description="rank of the adapter's matrices")
    alpha: int = Field(default=16, ge=1, le=4096, description="the update is scaled by alpha / rank")
    targets: tuple[Target, ...] = Field(
        default=_AUTO,
        validate_default=True,
        description="linear layers that are adapted: q, k, v, o, gate, up and down of each text block, connector "
        "between vision side and text, and vision, the layers of the vision tower; auto is the first seven for the "
        "embedded model and q, v for any other, as the noise grows with the root of the trained values. With "
        "connector or vision each image goes through the vision side in every round; no features are stored",
    )
    last_layers: int | None = Field(
        default=None, ge=1, description="adapt only this many of the last text blocks; null adapts all"
    )
    train: Literal["B", "both", "alternate"] = Field(
        default="B",
        description="which of the two matrices is trained; B freezes A at its initial values, "
        "alternate trains B in odd rounds and A in even ones",
    )
    seed: Seed = Field(default=0, description="seed of the initial values, shared by all clients")
    warm_start: Literal["auto", "none", "public"] = Field(
        default="auto",
        description="public tunes the adapter on public records, without noise, before the first private round, and "
        "begins part of the way there; auto does so where the label head alone is trained, "
        "and with any base but the embedded one, unless clients take local steps. Stages begin without",
    )
    head: Literal["auto", "linear", "text", "none"] = Field(
        default="auto",
        description="linear layer, trained with the adapter, whose logits are added to the label scores: linear is "
        "on the frozen vision features, text on the mean state of the frozen language model over the whole prompt; "
        "auto is text with captions, unless the base is the embedded one, else linear, and none where clients release "
        "updates of local steps",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        """Return nothing for ``auto``, which the whole configuration resolves by the base."""
        if value == _AUTO:
            return ()
        if isinstance(value, list | tuple) and not value:
            raise ValueError("names no layer")
        return value

    @field_validator("targets")
    @classmethod
    def _once(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a layer twice")
        return value
