"""Attribute inference: does the tuned model reveal more than the labels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from carefl_secure.audit.views import Attack, Finding

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Person:
    """Labels, scores of the public base, and scores of the tuned model of some records, each [records, labels]."""

    labels: Table
    base: Table
    tuned: Table


@dataclass(frozen=True)
class AttributeView:
    """What a user of the adapter with partial knowledge sees."""

    targets: Person  # the records whose attribute is sought
    known: Person  # others, not trained on
    known_values: npt.NDArray[np.str_]  # [known], their attribute


class AttributeInference(Attack[AttributeView, Mapping[str, npt.NDArray[np.str_]]]):
    """Guesses an attribute by logistic regression, from increasing knowledge.

    ``imputation`` uses the labels alone, ``base`` adds what the public model says of the picture, ``tuned`` adds what
    the tuned model says. Only the gain of ``tuned`` over ``base`` is due to the training.

    References
    ----------
    Jayaraman, Evans, "Are Attribute Inference Attacks Just Imputation?", CCS 2022.
    """

    name = "attributes"
    adversary = "a user of the released adapter who knows the rest of a record"
    view = AttributeView

    def attack(self, view: AttributeView) -> Mapping[str, npt.NDArray[np.str_]]:
        """Return the guessed values of the targets, by how much was used."""
        guesses = {}
        for name in ("imputation", "base", "tuned"):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
            model.fit(_columns(view.known, name), view.known_values)
            guesses[name] = np.asarray(model.predict(_columns(view.targets, name)), np.str_)
        return guesses


def _columns(person: Person, name: str) -> Table:
    used = ("imputation", "base", "tuned").index(name) + 1
    return np.concatenate([person.labels, person.base, person.tuned][:used], axis=1)


def judge_attributes(
    attribute: str,
    guesses: Mapping[str, npt.NDArray[np.str_]],
    truth: npt.NDArray[np.str_],
    member: npt.NDArray[np.bool_],
) -> Finding:
    """Compare the accuracies on members with those on others.

    The finding is always ``measured``: no promise covers attributes that hold for a whole population. ``guesses`` come
    from :class:`AttributeInference`; ``truth`` (str) and ``member`` (bool) are [targets].
    """
    right = {name: (values == truth).astype(np.float64) for name, values in guesses.items()}
    gain = right["tuned"] - right["base"]
    own, others = float(gain[member].mean()), float(gain[~member].mean())
    error = math.sqrt(float(gain[member].var()) / member.sum() + float(gain[~member].var()) / (~member).sum())
    figures = {f"accuracy on members: {n}": float(v[member].mean()) for n, v in right.items()}
    figures |= {f"accuracy on others: {n}": float(v[~member].mean()) for n, v in right.items()}
    figures |= {"gain by training, members less others": own - others, "standard error": error}
    words = (
        f"{attribute}: imputation from the labels is right for {figures['accuracy on members: imputation']:.3f} of "
        f"the members; the base model for {figures['accuracy on members: base']:.3f}, the tuned one for "
        f"{figures['accuracy on members: tuned']:.3f}. What training added is {own - others:+.3f} (standard error "
        f"{error:.3f}) larger on members than on others."
    )
    return Finding(AttributeInference.name, attribute, "measured", words, figures)
