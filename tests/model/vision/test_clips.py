"""A clip is asked about as SmolVLM2's own processor asks about a video, and its frames are encoded once each."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.video_utils import VideoMetadata

from carefl_secure.data.clips import as_clips
from carefl_secure.data.records import BASIC, Moment, Record
from carefl_secure.data.splits import Subset
from carefl_secure.model.embedded import build_processor
from carefl_secure.model.label_scorer import LabelScorer, RecordLosses
from carefl_secure.model.loader import load_base
from carefl_secure.model.lora import Adapter
from carefl_secure.model.prompts import Prompter, Shots
from carefl_secure.model.vision.encode import encode_record, vision_features
from carefl_secure.model.vision.tiles import Tiles, image_cost
from carefl_secure.progress import SilentReporter

QUESTION = "Which basic expression is it?"
FPS = 24.0  # of images without a video


class Frames:
    """Noise: a clip of five frames, one of two, and one of a single frame that the first has too."""

    name, space = "frames", BASIC

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(7)]
        self.images.append(self.images[0])
        clips = [("a", 40 * n) for n in range(5)] + [("b", 0), ("b", 1700), ("c", 3)]
        self.records = [Record(f"{c}/{n}", ("abc".index(c),), moment=Moment(c, n)) for c, n in clips]

    def image(self, index: int) -> Image.Image:
        return self.images[index]


def asked_by_the_processor(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the prompt of a video that the class of SmolVLM2's processor makes.

    Its video processor needs torchvision, so that only the part that writes text is used.
    """
    words = {1: "one", 3: "three", 12: "twelve"}
    monkeypatch.setattr(processing_smolvlm, "num2words", words.__getitem__)
    ours = build_processor()
    theirs = object.__new__(SmolVLMProcessor)
    theirs.tokenizer, theirs.chat_template = ours.tokenizer, ours.chat_template
    theirs.image_processor, theirs.image_seq_len = ours.image_processor, ours.image_seq_len
    theirs.video_processor = SimpleNamespace(num_frames=64, fps=1)
    theirs.fake_image_token, theirs.image_token = "<fake_token_around_image>", "<image>"
    theirs.global_image_token = "<global-img>"
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    form = theirs.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    frames = [round(second * FPS) for second in seconds]
    metadata = VideoMetadata(total_num_frames=frames[-1] + 1, fps=FPS, frames_indices=frames)
    video = {"pixel_values": np.zeros((1, len(frames), 3, 8, 8)), "video_metadata": [metadata]}
    return str(form).replace("<video>", theirs.replace_video_token(video, 0))


@pytest.mark.parametrize("seconds", [[0.0], [0.0, 1.7, 70.9], [7.5 * n for n in range(12)]])
def test_a_prompt_is_what_smolvlm2s_processor_makes(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = asked_by_the_processor(seconds, monkeypatch)
    prompter = Prompter(build_processor())
    ours, _ = prompter.batch([QUESTION], [Shots(tuple(int(second) for second in seconds))])
    assert ours[0].tolist() == prompter.ids(theirs)
    assert theirs.count("<image>") == 16 * len(seconds)


def test_frames_are_evenly_spaced_and_a_clip_is_one_record() -> None:
    clips, _ = as_clips(Frames(), 3)
    assert [clip.frames for clip in clips.clips] == [(0, 2, 4), (5, 6), (7,)]
    assert [clip.seconds for clip in clips.clips] == [(0, 3, 6), (0, 70), (0,)]
    assert [record.key for record in clips.records] == ["a/0", "b/0", "c/3"]
    assert clips.image(0) is clips.corpus.image(2)


def test_scores_of_clips_are_those_of_the_whole_model(tiny: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny), quantization="none", compute_dtype="float32", feature_cache=tmp_path / "a")
    corpus = Frames()
    clips, _ = as_clips(corpus, 4)
    held = vision_features(base, clips, SilentReporter())
    used = {frame for clip in clips.clips for frame in clip.frames} - {7}  # equal to frame 0
    assert len(base.features._index) == len(used) == 6  # every frame once, not once a clip
    some = vision_features(base, Subset(clips, (2, 0)), SilentReporter())[:]
    assert isinstance(some, Tiles) and torch.equal(some.tiles, held[np.array([2, 0])].tiles)
    assert torch.allclose(encode_record(base, clips, 1).tiles, held[1:2].tiles, atol=1e-5)
    adapter = Adapter(base, rank=2, alpha=4)
    adapter.load(np.random.default_rng(1).normal(0, 0.2, adapter.dimension).astype(np.float32))
    scorer = LabelScorer(adapter, BASIC, QUESTION)
    found = scorer.all(held, batch=2)
    for i, clip in enumerate(clips.clips):  # one label after the other, from the pixels
        pixels = base.processor.image_processor([[corpus.image(f) for f in clip.frames]], return_tensors="pt")
        ids, _ = base.prompter.batch([QUESTION], [Shots(clip.seconds)])
        likely = []
        for row in base.prompter.answers(BASIC.labels, reference=False):
            tail = torch.tensor(row)
            with torch.no_grad():
                logits = adapter.module(
                    input_ids=torch.cat([ids, tail[None]], 1),
                    pixel_values=pixels["pixel_values"],
                    pixel_attention_mask=pixels.get("pixel_attention_mask"),
                ).logits[0, ids.shape[1] - 1 : -1]
            likely.append(logits.log_softmax(-1).gather(1, tail[:, None]).sum())
        assert np.allclose(found[i], torch.stack(likely).log_softmax(-1).numpy(), atol=1e-4)
    # the loss of a clip is its own: another clip in the batch changes nothing
    losses = RecordLosses(scorer, held, np.eye(7, dtype=np.float32)[:3])
    together = losses.losses(np.arange(3))
    assert torch.allclose(together, torch.cat([losses.losses(np.array([i])) for i in range(3)]), atol=1e-5)


def test_a_label_head_sees_the_mean_of_the_frames() -> None:
    tiles = Tiles(torch.arange(12.0).view(3, 2, 2), (Shots((0, 1)), (0, 0)))
    assert torch.equal(tiles.whole(), torch.stack([tiles.tiles[:2].mean(0), tiles.tiles[2]]))


def test_the_cost_of_a_clip_is_said() -> None:
    processor = build_processor()
    assert "up to 8 frames of 16 tokens, 128 in all (model.frames)" in image_cost(processor, Prompter(processor), 8)
