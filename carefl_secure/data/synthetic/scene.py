"""The factors of a drawn scene, and how annotators turn them into labels.

A scene is a vector of *factors*: action units of the face, posture, setting, prop and light. Two schools of annotators
label the same factors. The ``public`` school judges mostly the face; the ``private`` school weighs the context more
and uses several category names differently. Federated tuning of a model that knows the public labels can gain the
private school's mapping from factors to labels, which the text side alone can learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from carefl_secure.data.records import BASIC, COMPOUND, EMOTIC

GROUPS: dict[str, tuple[str, ...]] = {
    "brows": ("level", "lowered", "raised", "inner raised"),
    "eyes": ("open", "wide", "narrowed", "closed"),
    "mouth": ("flat", "smile", "laugh", "frown", "round", "curled"),
    "mark": ("none", "tears", "blush", "sweat"),
    "posture": ("hanging", "raised", "crossed", "on the face", "reaching"),
    "setting": ("park", "beach", "home", "office", "hospital", "alley", "stadium", "cemetery"),
    "prop": ("none", "book", "friend", "trophy", "bandage", "pillow", "gift", "fire"),
    "light": ("bright", "dim"),
}
"""Each factor group and its values; the value's place is its id."""

FACTORS: tuple[str, ...] = tuple(f"{g}={v}" for g, values in GROUPS.items() for v in values)
_OFFSET = dict(zip(GROUPS, np.cumsum([0, *(len(v) for v in GROUPS.values())])[:-1].tolist(), strict=True))

_TABLES = yaml.safe_load(Path(__file__).with_name("scene.yaml").read_text("utf-8"))
_FACE: dict[str, dict[str, tuple[str, float]]] = _TABLES["face"]
_COMPONENTS: dict[str, tuple[str, str]] = _TABLES["compound"]
_CATEGORY: dict[str, tuple[float, str, str]] = _TABLES["category"]
_SECOND = {"Happiness": ("mouth", "laugh"), "Fear": ("mouth", "round"), "Anger": ("mouth", "flat")}
_MARK = {"Sadness": "tears", "Happiness": "blush", "Fear": "sweat"}
_BASIC_SHARE = np.array([0.14, 0.12, 0.12, 0.22, 0.15, 0.13, 0.12])
# The private school uses these names the other way round.
_SWAPPED = (
    ("Peace", "Pleasure"),
    ("Annoyance", "Disapproval"),
    ("Esteem", "Affection"),
    ("Suffering", "Sympathy"),
    ("Anticipation", "Excitement"),
    ("Fatigue", "Disconnection"),
)
_WEIGHT = {"public": (1.3, 0.9), "private": (0.8, 1.7)}  # (face, context)
_FACE_GROUPS = ("brows", "eyes", "mouth", "mark")


@dataclass(frozen=True)
class Scenes:
    """The factors and expression labels of many scenes."""

    factors: npt.NDArray[np.int8]  # [scenes, groups]: the value's id in each group of GROUPS
    basic: npt.NDArray[np.int8]  # [scenes]: the basic expression, the dominant one of a compound
    compound: npt.NDArray[np.int8]  # [scenes]: the compound expression or -1

    def one_hot(self) -> npt.NDArray[np.float32]:
        """Return the factors as a 0/1 matrix, shape ``[scenes, len(FACTORS)]``."""
        out = np.zeros((len(self.factors), len(FACTORS)), np.float32)
        for column, group in enumerate(GROUPS):
            out[np.arange(len(out)), _OFFSET[group] + self.factors[:, column]] = 1.0
        return out


def _face_value(rng: np.random.Generator, expression: str, group: str) -> int:  # one action unit of one face
    values = GROUPS[group]
    if group == "mark":
        likely, chance = _MARK.get(expression, "none"), 0.55 if expression in _MARK else 0.85
    else:
        likely, chance = _FACE[expression][group]
    u = rng.random()
    if u < chance:
        return values.index(likely)
    if expression in _SECOND and _SECOND[expression][0] == group and u < 0.95:
        return values.index(_SECOND[expression][1])
    return int(rng.integers(len(values)))


def draw_scenes(count: int, rng: np.random.Generator) -> Scenes:
    """Draw scenes whose face depends on the expression, up to chance; posture, setting, prop and light do not."""
    factors = np.zeros((count, len(GROUPS)), np.int8)
    basic = np.empty(count, np.int8)
    compound = np.full(count, -1, np.int8)
    for i in range(count):
        if rng.random() < 0.4:
            compound[i] = rng.integers(len(COMPOUND.labels))
            upper, lower = _COMPONENTS[COMPOUND.labels[compound[i]]]
            dominant = upper if rng.random() < 0.5 else lower
        else:
            upper = lower = dominant = BASIC.labels[rng.choice(7, p=_BASIC_SHARE)]
        basic[i] = BASIC.labels.index(dominant)
        for column, group in enumerate(_FACE_GROUPS):
            source = upper if group in ("brows", "eyes") else lower
            factors[i, column] = _face_value(rng, source, group)
    factors[:, 4] = rng.integers(len(GROUPS["posture"]), size=count)
    factors[:, 5] = rng.integers(len(GROUPS["setting"]), size=count)
    factors[:, 6] = rng.integers(len(GROUPS["prop"]), size=count)
    factors[:, 7] = rng.random(count) < 0.4
    return Scenes(factors, basic, compound)


def _weights(school: str) -> npt.NDArray[np.float64]:
    face_weight, context_weight = _WEIGHT[school]
    rename = {name: name for name in EMOTIC.labels}
    if school == "private":
        for a, b in _SWAPPED:
            rename[a], rename[b] = b, a
    out = np.zeros((len(EMOTIC.labels), len(FACTORS)))
    for row, name in enumerate(EMOTIC.labels):
        _, face, context = _CATEGORY[rename[name]]
        for evidence, weight in ((face, face_weight), (context, context_weight)):
            for factor, strength in (item.split(":") for item in evidence.split()):
                out[row, FACTORS.index(factor.replace("_", " "))] = float(strength) * weight
    return out


def _bias(logits: npt.NDArray[np.float64], prevalence: float) -> float:
    low, high = -30.0, 10.0  # bisection: the mean probability grows with the bias
    for _ in range(40):
        middle = (low + high) / 2
        if float(np.mean(1 / (1 + np.exp(-(logits + middle))))) < prevalence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def emotic_labels(scenes: Scenes, school: str, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    r"""Label scenes as one school of annotators does, with their disagreement: [scenes, 26].

    Category :math:`k` is ticked with probability :math:`\sigma(b_k + \sum_f w_{kf} x_f)`, where
    :math:`x` are the scene's factors, :math:`w` the school's weights and :math:`b_k` gives the
    category its prevalence. A record without any label gets the most probable one.
    """
    weights = _weights(school)
    reference = draw_scenes(4096, np.random.default_rng(20261121)).one_hot() @ weights.T
    logits = scenes.one_hot() @ weights.T
    for k, name in enumerate(EMOTIC.labels):
        logits[:, k] += _bias(reference[:, k], _CATEGORY[name][0])
    ticked: npt.NDArray[np.bool_] = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    empty = ~ticked.any(axis=1)
    ticked[empty, logits[empty].argmax(axis=1)] = True
    return ticked


def context_shares(school: str) -> dict[str, float]:
    r"""Return, for each category, how much of what decides it lies in the context.

    With :math:`f` the evidence of the face and :math:`c` that of posture, setting, prop and light
    over many scenes, the share is :math:`\operatorname{Var} c / (\operatorname{Var} f +
    \operatorname{Var} c)`: 0 where the face alone decides, 1 where the context alone does.
    """
    weights = _weights(school)
    scenes = draw_scenes(4096, np.random.default_rng(20261121)).one_hot()
    seen = np.array([name.split("=")[0] in _FACE_GROUPS for name in FACTORS])
    face = (scenes[:, seen] @ weights[:, seen].T).var(0)
    context = (scenes[:, ~seen] @ weights[:, ~seen].T).var(0)
    share = context / np.maximum(face + context, 1e-12)
    return dict(zip(EMOTIC.labels, share.tolist(), strict=True))
