"""The rows of ``audits.py``: one function per attack, each on all four builds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from _bench import Bar, say
from _exposure import judge_exposure
from _planted_canaries import plant, train_on

from carefl_secure.audit.attacks.attributes import AttributeInference, AttributeView, Person, judge_attributes
from carefl_secure.audit.attacks.canaries import GradientCanaries, judge_canaries
from carefl_secure.audit.attacks.client_canaries import ClientCanaries, judge_clients, rehearse_clients
from carefl_secure.audit.attacks.exposure import Exposure, ExposureView, secret_losses
from carefl_secure.audit.attacks.image_inversion import Pictures
from carefl_secure.audit.attacks.image_trials import counted_noise, invert_images, judge_images, pick_ceiling
from carefl_secure.audit.attacks.membership import RATES, AdapterView, Membership
from carefl_secure.audit.attacks.server_transcript import ServerEyes
from carefl_secure.audit.attacks.text_inversion import Texts, judge_spans
from carefl_secure.audit.attacks.transcript import judge_helpers
from carefl_secure.audit.bounds.clopper_pearson import exact_interval
from carefl_secure.audit.replay.canary_run import plan_like, rehearse
from carefl_secure.audit.replay.recording import Rehearsal
from carefl_secure.audit.views import Finding, Heard
from carefl_secure.config import Config, load_config
from carefl_secure.model.loader import load_base
from carefl_secure.privacy import epsilon
from carefl_secure.privacy.accounting.attack_bounds import AttackerBounds, attacker_bounds
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.build import key_source
from carefl_secure.secagg import wrap

BUILDS = ("no protection", "secure sum only", "epsilon 8", "epsilon 2")
QUIET = SilentReporter()


@dataclass
class Table:
    """One attack on all builds: what is measured, a cell for each build, and the bars."""

    name: str
    says: str
    rows: list[tuple[str, Sequence[str]]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"## {self.name}", "", self.says, "", f"| | {' | '.join(BUILDS)} |"]
        lines += ["| --- " * (1 + len(BUILDS)) + "|"]
        lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    canaries: int = 120
    population: int = 120
    rounds: int = 60
    codes: int = 10
    coins: int = 1000
    texts: int = 15
    pictures: int = 200
    inverted: int = 4
    steps: int = 100


QUICK = Sizes(40, 60, 40, 6, 300, 5, 60, 2, 60)

_OVERFIT = (
    "federation.clients=4",
    "simulation.dropout=0",
    "federation.server_lr=0.03",
    "privacy.max_colluders=0",
    "privacy.sample_rate=1",
    "privacy.delta=0.001",
    "model.quantization=none",
)


def settings(build: str, *more: str) -> Config:
    """Return the configuration of one build."""
    privacy = {"epsilon 8": "privacy.epsilon=8", "epsilon 2": "privacy.epsilon=2"}
    return load_config(None, [*more, privacy.get(build, "privacy.unit=none")])


def share(finding: Finding, name: str) -> str:
    """Return a rate of a finding with its interval."""
    f = finding.figures
    return f"{f[name]:.3f} ({f[name + ', 95 % low']:.3f} to {f[name + ', 95 % high']:.3f})"


def area(scores: np.ndarray, member: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return the area under the ROC curve with a stratified bootstrap interval of 95 %."""
    inside, outside = scores[member], scores[~member]
    wins = (inside[:, None] > outside[None]) + 0.5 * (inside[:, None] == outside[None])
    rng = np.random.default_rng(seed)
    ones, twos = len(inside), len(outside)
    drawn = []
    for _ in range(1000):
        rows, columns = rng.integers(ones, size=ones), rng.integers(twos, size=twos)
        drawn.append(wins[np.ix_(rows, columns)].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(wins.mean()), float(low), float(high)


class Lab:
    """Everything that several tables need, made once."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.sizes, self.seed = sizes, seed

    @cached_property
    def planted(self) -> tuple[Any, Any, Any]:
        """Return scorer, canaries and the adapter before training."""
        config = self.overfit("no protection")
        scorer, canaries = plant(config, self.sizes.canaries, self.sizes.population, QUIET, self.seed)
        return scorer, canaries, scorer.adapter.vector()

    def overfit(self, build: str) -> Config:
        """Return a setting under which the embedded model learns every record by heart."""
        sizes = self.sizes
        return settings(
            build,
            *_OVERFIT,
            f"federation.rounds={sizes.rounds}",
            f"data.records={sizes.canaries}",
            f"run.seed={self.seed}",
        )

    @cached_property
    def tuned(self) -> Mapping[str, tuple[Any, Any]]:
        """Return adapter and plan of each build; masks change nothing about the adapter."""
        scorer, canaries, initial = self.planted
        out = {}
        for build in ("no protection", "epsilon 8", "epsilon 2"):
            say(f"training on canaries: {build}")
            out[build] = train_on(scorer, canaries, self.overfit(build), initial, QUIET)
        out["secure sum only"] = out["no protection"]
        return {build: out[build] for build in BUILDS}

    @cached_property
    def plans(self) -> Mapping[str, Any]:
        """Return the plan of the default run under each build, for its noise."""
        return {b: plan_like(settings(b), 4096, 1000) for b in BUILDS}

    @cached_property
    def rehearsals(self) -> Mapping[str, Rehearsal]:
        """Return rehearsals of the default run under each build."""
        out = {}
        for build in BUILDS[1:]:
            say(f"rehearsing: {build}")
            config = settings(build, f"run.seed={self.seed}")
            out[build] = rehearse(config, key_source(config), canaries=self.sizes.coins, seed=self.seed)
        return {"no protection": out["secure sum only"], **out}


def bare(rehearsal: Rehearsal) -> Rehearsal:
    """Return the same rehearsal with every upload as it would be without masks."""
    kind = np.uint16 if rehearsal.plan.encoding.bits == 16 else np.uint32
    rng = np.random.default_rng(0)
    messages = []
    for message in rehearsal.messages:
        upload = message.fields.get("upload")
        if message.from_client and message.action == "train.masked" and isinstance(upload, bytes):
            # Any vector of a client is one of small integers; which ones does not matter here.
            small = rng.integers(-500, 501, rehearsal.plan.encoding.padded)
            words = wrap(small, rehearsal.plan.encoding.bits).astype(kind).tobytes()
            fields = {**message.fields, "upload": upload[:16] + words + upload[-64:]}
            message = Heard(message.round, message.client, True, message.action, fields)
        messages.append(message)
    return dataclasses.replace(rehearsal, messages=tuple(messages))


def server_view(lab: Lab) -> Table:
    """Count the uploads that the server can read."""
    table = Table(
        "Server view",
        "Share of the uploads of a run that the server can read: their words are not uniform, or "
        "a mask cancels. 95 % interval of Clopper and Pearson. Without protection every upload is "
        "a vector of small integers.",
    )
    cells, rates = [], {}
    for build, rehearsal in lab.rehearsals.items():
        heard = bare(rehearsal) if build == "no protection" else rehearsal
        view = heard.transcript()
        total = sum(m.from_client and m.action == "train.masked" and bool(m.fields) for m in view.messages)
        read = sum(w.kind == "unmasked" for w in ServerEyes()(view))
        low, high = exact_interval(read, total)
        rates[build] = read / total
        cells.append(f"{read} of {total} ({low:.3f} to {high:.3f})")
    table.rows.append(("peers", cells))
    for mode in ("committee", "encrypted"):
        config = settings("epsilon 8", "federation.rounds=4", f"run.seed={lab.seed}")
        rehearsal = rehearse(config, key_source(config), canaries=64, aggregation=mode)
        found = ServerEyes()(rehearsal.transcript())
        helpers = judge_helpers(rehearsal.members(), rehearsal.holder())
        bad = len(found) + sum(f.verdict == "falsified" for f in helpers)
        table.rows.append((f"weaknesses found, {mode}, server and helpers", ["", "", str(bad), ""]))
        table.bars.append(Bar(f"weaknesses of {mode}", bad, 0, at_least=False))
    table.bars += [
        Bar("uploads read without protection", rates["no protection"], 1.0),
        Bar("uploads read under masks", max(rates[b] for b in BUILDS[1:]), 0.0, at_least=False),
    ]
    return table


def record_canaries(lab: Lab) -> Table:
    """Bound epsilon from one run with gradient canaries."""
    table = Table(
        "Record canaries",
        f"Lower bound on epsilon at 95 % confidence (f-DP, one run, {lab.sizes.coins} gradient "
        "canaries put in by coin flips; Steinke et al. in brackets). The interval reaches from "
        "there to the claim. A perfect attack on so many coins could not show more than the last "
        "row says.",
    )
    bounds, most, verdicts = [], [], []
    for build, rehearsal in lab.rehearsals.items():
        finding = judge_canaries(rehearsal, GradientCanaries()(rehearsal.releases()))
        f = finding.figures
        claim = f"{f['epsilon claimed']:g}" if "epsilon claimed" in f else "none"
        low = float(f["epsilon lower bound: f-dp"])
        bounds.append(f"{low:.2f} ({f['epsilon lower bound: steinke']:.2f}) to {claim}")
        most.append(f"{f[f'attainable with {lab.sizes.coins} canaries: f-dp']:.2f}")
        verdicts.append(finding.verdict)
        table.figures[build] = low
        if claim != "none":
            table.bars.append(Bar(f"canaries, {build}", low, float(claim), at_least=False))
    table.rows += [("epsilon", bounds), ("verdict", verdicts), ("attainable", most)]
    table.bars.append(Bar("canaries without noise", table.figures["secure sum only"], 1.0))
    return table


def client_canaries(lab: Lab) -> Table:
    """Bound the epsilon of one round with canary clients under the unit client."""
    table = Table(
        "Client canaries",
        "Sixteen clients flip a coin in every round whether they take part (`privacy.unit: "
        "client`). Lower bound on the epsilon of one round, to the price of one round.",
    )
    more = ("federation.clients=16", f"run.seed={lab.seed}")
    cells, verdicts, most = [], [], []
    for build in BUILDS[1:]:
        open_run = build == "secure sum only"
        unit = ("privacy.sample_rate=1",) if open_run else ("privacy.unit=client",)
        config = settings(build, *more, *unit)
        plan = plan_like(config, 64, 1)
        rehearsal, coins = rehearse_clients(config, key_source(config), plan, seed=lab.seed)
        finding = judge_clients(rehearsal, ClientCanaries()(rehearsal.releases()), coins)
        low = float(finding.figures["epsilon lower bound: f-dp"])
        price = "none"
        if plan.event is not None:
            price = f"{epsilon([plan.event], plan.privacy.delta):.2f}"
            table.bars.append(Bar(f"client canaries, {build}", low, float(price), at_least=False))
        else:
            table.bars.append(Bar("client canaries without noise", low, 1.0))
        cells.append(f"{low:.2f} to {price}")
        verdicts.append(finding.verdict)
        most.append(f"{finding.figures[f'attainable with {coins.size} coins: f-dp']:.2f}")
    for name, row in (("epsilon of a round", cells), ("verdict", verdicts), ("attainable", most)):
        table.rows.append((name, [row[0], *row]))
    return table


def text(lab: Lab) -> Table:
    """Read text out of updates."""
    table = Table(
        "Text reconstruction",
        f"Share of the tokens of a text that the span check recovers, {lab.sizes.texts} texts of "
        "16 distinct tokens (prompt and caption tokens are read alike: the check sees embeddings). "
        "Interval of Clopper and Pearson over tokens. Under the secure sum the server has a masked "
        "upload; under epsilon the record is alone under the counted noise.",
    )
    for train in ("both", "B"):
        cells = {}
        for build in BUILDS[1:]:
            texts = Texts(load_base(quantization="none"), rank=8, alpha=16, train=train)
            plan = lab.plans[build]
            found = {
                f.check: f
                for f in judge_spans(
                    texts,
                    clients=plan.privacy.clients,
                    noise_multiplier=counted_noise(plan),
                    clipping_norm=1.0,
                    trials=lab.sizes.texts,
                    private_text=True,
                )
            }
            if build == "secure sum only":
                cells["no protection"] = share(found["plain"], "recall")
                cells[build] = share(found["masked"], "recall")
                summed = share(found["sum"], "recall")
                plain, masked = found["plain"].figures, found["masked"]
                if train == "both":
                    table.bars.append(Bar("tokens from a plain update", plain["recall"], 0.9))
                table.bars.append(_passes(f"tokens under masks, {train}", masked))
            else:
                cells[build] = share(found["noise"], "recall")
                table.bars.append(_passes(f"tokens at {build}, {train}", found["noise"]))
        name = "A and B trained" if train == "both" else "B alone (default)"
        table.rows.append((name, [cells[b] for b in BUILDS]))
        table.rows.append((f"{name}: opened sum of 8 without noise", ["", summed, "", ""]))
    return table


def _passes(name: str, finding: Finding) -> Bar:
    return Bar(name + " (verdict)", float(finding.verdict == "falsified"), 0, at_least=False)


def images(lab: Lab) -> Table:
    """Match gradients of pictures."""
    from carefl_secure.data.records import targets
    from carefl_secure.data.synthetic.corpus import synthetic_corpus
    from carefl_secure.model.vision.encode import vision_features
    from carefl_secure.runs.build import label_scorer

    sizes = lab.sizes
    table = Table(
        "Image gradient matching",
        f"Re-identification: which of 100 candidate records made the update ({sizes.pictures} "
        "trials, chance 0.01, interval of Clopper and Pearson). Inversion: features rebuilt by "
        f"optimisation without candidates ({sizes.inverted} records, {sizes.steps} steps): cosine "
        "with the true features, both less the mean of other pictures.",
    )
    config = settings("no protection", "model.quantization=none")
    corpus = synthetic_corpus("test", 130, seed=11 + lab.seed, reporter=QUIET)
    scorer = label_scorer(config, corpus.space)
    rng = np.random.default_rng(lab.seed)
    # B as after some rounds; where it is zero the features' own gradient vanishes.
    moved = (0.02 * rng.normal(size=scorer.adapter.dimension)).astype(np.float32)
    features = vision_features(scorer.adapter.base, corpus, QUIET)[:]
    pictures = Pictures(scorer, moved, features, targets(corpus), candidates=100)
    hit, ceilings, cosines, summed = {}, {}, {}, ""
    for build in BUILDS[1:]:
        say(f"matching pictures: {build}")
        plan = lab.plans[build]
        noise, ceiling = counted_noise(plan), pick_ceiling(plan, 100)
        trials = judge_images(
            pictures,
            clients=plan.privacy.clients,
            noise_multiplier=noise,
            ceiling=ceiling,
            trials=sizes.pictures,
            seed=lab.seed,
        )
        trials += invert_images(
            pictures,
            noise_multiplier=noise,
            trials=sizes.inverted,
            steps=sizes.steps,
            only="noise" if noise > 0 else None,
        )
        found = {f.check: f for f in trials}
        if build == "secure sum only":
            hit["no protection"] = share(found["plain"], "hit rate")
            hit[build] = share(found["masked"], "hit rate")
            summed = share(found["sum"], "hit rate")
            cosines["no protection"] = _cosine(found["inversion, plain"])
            cosines[build] = _cosine(found["inversion, masked"])
            ceilings |= {"no protection": "none", build: "0.010"}
            plain = found["plain"].figures["hit rate"]
            table.bars.append(Bar("picture picked from a plain update", plain, 0.9))
            cosine = found["inversion, plain"].figures["cosine"]
            table.bars.append(Bar("cosine of inverted features, plain", cosine, 0.2))
            table.bars.append(_passes("picture under masks", found["masked"]))
        else:
            hit[build] = share(found["noise"], "hit rate")
            cosines[build] = _cosine(found["inversion, noise"])
            ceilings[build] = f"{ceiling:.3f}"
            table.bars.append(_passes(f"picture at {build}", found["noise"]))
    table.rows += [
        ("right picture", [hit[b] for b in BUILDS]),
        ("ceiling of one round", [ceilings[b] for b in BUILDS]),
        ("opened sum of 8 without noise", ["", summed, "", ""]),
        ("inversion: mean cosine (least to largest)", [cosines[b] for b in BUILDS]),
    ]
    return table


def _cosine(finding: Finding) -> str:
    f = finding.figures
    return f"{f['cosine']:.2f} ({f['least cosine']:.2f} to {f['largest cosine']:.2f})"


def under(bounds: AttackerBounds) -> float:
    """Return the largest area that any test can have: a sum from above over a rising curve."""
    points = ((0.0, bounds.curve[0][1]), *bounds.curve)
    return sum((b[0] - a[0]) * b[1] for a, b in itertools.pairwise(points))


def membership(lab: Lab) -> Table:
    """Infer membership from the adapter of an overfitted run."""
    sizes = lab.sizes
    table = Table(
        "Membership",
        f"AUC on the adapter of a run made to overfit: {sizes.canaries} canaries, half in by coin "
        "flips, random label sets and captions, all of them in each of "
        f"{sizes.rounds} rounds, B alone. Stratified bootstrap interval (1000 resamples). The "
        "adapter is the same with and without masks.",
    )
    scorer, canaries, initial = lab.planted
    rows = np.arange(canaries.count)
    rest = np.arange(canaries.count, len(canaries.targets))
    names: dict[str, list[str]] = {"loss": [], "calibrated": [], "population": []}
    rates, tops, roofs = [], [], []
    for build, (tuned, plan) in lab.tuned.items():
        view = AdapterView(
            canaries.losses(scorer, tuned, rows),
            canaries.losses(scorer, initial, rows),
            canaries.losses(scorer, tuned, rest),
            canaries.losses(scorer, initial, rest),
        )
        best, lowest = 0.0, 0.0
        scores = Membership()(view)
        for name, values in scores.items():
            value, low, high = area(values, canaries.member, lab.seed)
            names[name].append(f"{value:.3f} ({low:.3f} to {high:.3f})")
            best, lowest = max(best, value), max(lowest, low)
        member, other = scores["loss"][canaries.member], scores["loss"][~canaries.member]
        caught = int(np.sum(member > np.sort(other)[-1 - int(0.01 * len(other))]))
        low, high = exact_interval(caught, len(member))
        rates.append(f"{caught / len(member):.3f} ({low:.3f} to {high:.3f})")
        if plan.event is None:
            tops.append("1")
            roofs.append("1")
        else:
            spent = attacker_bounds([plan.event.times(plan.privacy.rounds)], RATES)
            tops.append(f"{spent.true_positive_rate[0.01]:.3f}")
            roofs.append(f"{under(spent):.3f}")
            reach = spent.true_positive_rate[0.01]
            table.bars += [
                Bar(f"membership TPR at 1 %, {build}, low limit", low, reach, at_least=False),
                Bar(f"membership AUC, {build}, low limit", lowest, under(spent), at_least=False),
            ]
        if build == "no protection":
            table.bars.append(Bar("membership AUC without protection", best, 0.9))
    table.rows += [(f"AUC, {name}", cells) for name, cells in names.items()]
    table.rows.append(("ceiling of the AUC", roofs))
    table.rows += [("TPR at 1 % FPR, loss", rates), ("its ceiling", tops)]
    return table


def exposure(lab: Lab) -> Table:
    """Rank planted labels and captions."""
    table = Table(
        "Exposure of planted secrets",
        "Mean exposure in bits of what was planted, +- 1.96 standard errors, beside that of "
        "secrets drawn the same way and never planted. Labels: sets of 3 of 26 labels, 11.34 bits. "
        "Captions: one of 128 codes of four digits, 7 bits. The bound on epsilon is f-DP at 95 %.",
    )
    scorer, canaries, _ = lab.planted
    rows = np.arange(canaries.count)
    half = lab.sizes.codes
    some = np.concatenate([np.flatnonzero(canaries.member)[:half], np.flatnonzero(~canaries.member)[:half]])
    cells: dict[str, list[str]] = {}

    def put(row: str, cell: str) -> None:
        cells.setdefault(row, []).append(cell)

    known: dict[int, tuple[Finding, Finding]] = {}
    for build, (tuned, _plan) in lab.tuned.items():
        if id(tuned) not in known:
            losses = secret_losses(canaries.scores(scorer, tuned, rows), canaries.label_space)
            labels = judge_exposure(
                Exposure()(ExposureView(losses)), canaries.label_truth[rows], canaries.member,
                0.001, what="labels", coins=True,
            )  # fmt: skip
            spoken = Exposure()(ExposureView(canaries.code_losses(scorer, tuned, some)))
            codes = judge_exposure(
                spoken, canaries.code_truth[some], canaries.member[some],
                0.001, what="captions", coins=False,
            )  # fmt: skip
            known[id(tuned)] = labels, codes
        for finding in known[id(tuned)]:
            f = finding.figures
            for who in ("planted", "others"):
                mean, error = f[f"exposure of {who}"], f[f"standard error of {who}"]
                put(f"{finding.check}, {who}", f"{mean:.2f} +- {1.96 * error:.2f}")
        put("epsilon from labels", f"{known[id(tuned)][0].figures['epsilon lower bound: f-dp']:.2f}")
        labels, codes = (f.figures for f in known[id(tuned)])
        if build == "no protection":
            table.bars.append(Bar("exposure of labels, bits", labels["exposure of planted"], 8.0))
            table.bars.append(Bar("exposure of captions, bits", codes["exposure of planted"], 5.0))
        elif build.startswith("epsilon"):
            low = labels["epsilon lower bound: f-dp"]
            limit = float(build.split()[1])
            table.bars.append(Bar(f"exposure bound, {build}", low, limit, at_least=False))
    table.rows += list(cells.items())
    return table


def attributes(lab: Lab) -> Table:
    """Infer attributes with the adapter of the overfitted run."""
    table = Table(
        "Attribute inference",
        "What training adds to the accuracy of a guessed attribute, members less others, +- 1.96 "
        "standard errors; 0 means that members are no worse off than anybody.",
    )
    scorer, canaries, initial = lab.planted
    rows = np.arange(canaries.count)
    rest = np.arange(canaries.count, len(canaries.targets))
    names = sorted(canaries.corpus.records[0].attributes)
    cells: dict[str, list[str]] = {name: [] for name in names}
    for tuned, _ in lab.tuned.values():
        people = [
            Person(
                canaries.targets[part].astype(np.float64),
                canaries.scores(scorer, initial, part),
                canaries.scores(scorer, tuned, part),
            )
            for part in (rows, rest)
        ]
        for name in names:
            values = np.array([r.attributes.get(name, "") for r in canaries.corpus.records])
            view = AttributeView(people[0], people[1], values[rest])
            found = judge_attributes(name, AttributeInference()(view), values[rows], canaries.member).figures
            gain = found["gain by training, members less others"]
            cells[name].append(f"{gain:+.3f} +- {1.96 * float(found['standard error']):.3f}")
    table.rows += list(cells.items())
    return table


TABLES: Mapping[str, Callable[[Lab], Table]] = {
    "server-view": server_view,
    "canaries": record_canaries,
    "client-canaries": client_canaries,
    "reconstruction": text,
    "images": images,
    "membership": membership,
    "exposure": exposure,
    "attributes": attributes,
}
