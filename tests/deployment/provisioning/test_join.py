"""Every party makes its own keys; whoever provisions holds none of them and can pass for nobody."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from carefl_secure.cli.app import app
from carefl_secure.deployment.provisioning.certificates import read_identity
from carefl_secure.deployment.provisioning.join import join
from carefl_secure.deployment.provisioning.party_keys import PublicHalf, make_keys, plain_fingerprint, replace_keys
from carefl_secure.deployment.provisioning.policy import TEMPLATE, read_policy
from carefl_secure.deployment.provisioning.provision import provision, read_halves, rehearse
from carefl_secure.deployment.provisioning.site_bundle import SiteBundle
from carefl_secure.deployment.provisioning.sites import Member, Roster, Sites, read_sites
from carefl_secure.deployment.site.agent import Agent
from carefl_secure.deployment.site.budget import corpus_ledger
from carefl_secure.errors import ConfigError, PolicyError, ProtocolError, RunError
from carefl_secure.noise import SystemKeySource
from carefl_secure.secagg import PairwiseClient, PairwiseServer, RoundParameters, default_threshold
from tests.support import pages

NAMES = ("north", "south", "west")
SITES = Sites("t", "fl.example.org", 9092, dict.fromkeys(NAMES, "/srv/images"), ("keeper",))
runner = CliRunner()


class Deployment:
    """Parties with folders of their own, and what whoever provisions can see and write."""

    def __init__(self, root: Path, sites: Sites = SITES) -> None:
        self.root, self.sites, self.keys = root, sites, root / "provisioner" / "keys"
        self.keys.mkdir(parents=True)
        for name in sites.clients:
            make_keys(self.home(name), name, "client")
        for name in sites.helpers:
            make_keys(self.home(name), name, "helper")
        for name in sites.submitters:
            make_keys(self.home(name), name, "submitter")
        self.hand_out()

    def home(self, name: str) -> Path:
        return self.root / "parties" / name

    def hand_out(self) -> None:
        for half in (self.root / "parties").glob("*/*.pub.json"):
            shutil.copy(half, self.keys)

    def provision(self, out: str = "bundles") -> Roster:
        self.out = self.root / "provisioner" / out
        return provision(self.sites, read_halves(self.sites, self.keys), self.out)

    def bundle(self, name: str) -> Path:
        return self.out / "sites" / name

    def join(self, name: str, confirmed: str | None = None, data: str | None = None) -> SiteBundle:
        return join(self.home(name), self.bundle(name), confirmed, data)


@pytest.fixture
def made(tmp_path: Path) -> Deployment:
    found = Deployment(tmp_path)
    found.provision()
    return found


def private_lines(folder: Path) -> set[bytes]:
    """Return the random part of every private key below a folder."""
    return {
        line
        for path in folder.rglob("*.key")
        for line in path.read_bytes().splitlines()[1:-1]
        if not line.startswith(b"b3BlbnNzaC1rZXk")  # the same in all keys of OpenSSH
    }


def test_whoever_provisions_holds_no_private_key_of_a_party(made: Deployment) -> None:
    parties = private_lines(made.root / "parties")
    assert len(parties) > 2 * len(NAMES)
    whole = [p.read_bytes() for p in (made.root / "provisioner").rglob("*") if p.is_file()]
    assert not [line for line in parties for content in whole if line in content]
    # The server's own TLS key is the only private key that provisioning makes.
    keys = {p.name for p in (made.root / "provisioner").rglob("*.key")}
    assert keys == {"server.key"}
    assert sum(b"PRIVATE KEY" in content for content in whole) == 1


def test_an_impostor_with_all_that_was_provisioned_signs_for_nobody(made: Deployment) -> None:
    """The attack on the old provisioning: play every site but one, and read that one's vector."""
    roster = Roster.read(made.out / "server" / "roster.json")
    n = len(roster.clients)
    params = RoundParameters(
        task=b"run", round=1, dimension=8, bits=32, threshold=default_threshold(n),
        min_survivors=n, model_hash=bytes(32), base_hash=bytes(32), plan_hash=bytes(32),
        roster=roster.keys("client"),
    )  # fmt: skip
    victim = PairwiseClient(params, 0, read_identity(made.home("north") / "identity.key"), SystemKeySource())
    for index in range(1, n):  # what the provisioner has instead of the sites' keys
        with pytest.raises(ProtocolError, match="key"):
            PairwiseClient(params, index, Ed25519PrivateKey.generate(), SystemKeySource())
    # It can write its own keys into a roster of its own. Its messages then fail at the victim.
    own = [Ed25519PrivateKey.generate() for _ in range(n - 1)]
    forged = dataclasses.replace(
        params, roster=(params.roster[0], *(key.public_key().public_bytes_raw() for key in own))
    )
    fakes = {
        index: PairwiseClient(forged, index, key, SystemKeySource()).advertise()
        for index, key in enumerate(own, start=1)
    }
    with pytest.raises(ProtocolError, match="context"):
        victim.share({0: victim.advertise(), **fakes})
    # Under the agreed roster a message that another key signed is refused as well.
    south = read_identity(made.home("south") / "identity.key")
    true = PairwiseClient(params, 1, south, SystemKeySource()).advertise()
    with pytest.raises(ProtocolError, match="signature"):
        PairwiseServer(params).advertised(1, true[:-64] + own[0].sign(true[:-64]))


def test_a_roster_with_a_swapped_key_is_refused(made: Deployment) -> None:
    true = made.provision("shown").fingerprint
    roster = Roster.read(made.out / "sites" / "north" / "roster.json")
    swapped = Member("south", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    forged = dataclasses.replace(roster, clients=(roster.clients[0], swapped, roster.clients[2]))
    for name in NAMES:
        (made.bundle(name) / "roster.json").write_text(forged.to_json())
    # The site whose key was swapped sees it at once, whatever fingerprint it is given.
    with pytest.raises(PolicyError, match="another key for south than this site made"):
        made.join("south", forged.fingerprint)
    # The others see another fingerprint than the one that the sites compared.
    with pytest.raises(PolicyError, match="another roster than was confirmed"):
        made.join("north", true)
    assert not (made.home("north") / "policy.yaml").exists()
    with pytest.raises(RunError):
        SiteBundle.open(made.home("north"))


def test_nothing_runs_before_a_person_has_confirmed(made: Deployment) -> None:
    with pytest.raises(ConfigError, match="compare it with what the other sites see"):
        made.join("north")
    assert not (made.home("north") / "bundle.json").exists()
    with pytest.raises(ConfigError, match="is no fingerprint"):
        made.join("north", "abcd")


def test_another_roster_is_refused_by_the_names_that_differ(made: Deployment) -> None:
    first = Roster.read(made.bundle("north") / "roster.json")
    made.join("north", first.fingerprint.upper().replace("-", ":"))
    replace_keys(made.home("west"))
    made.hand_out()
    second = made.provision("second")
    for confirmed in (None, first.fingerprint):
        with pytest.raises(PolicyError, match="client west has another key") as caught:
            made.join("north", confirmed)
        assert caught.value.clause == "roster" and second.fingerprint in str(caught.value)
    # Slipped into the folder behind the site's back, it starts nothing, and no run is accepted.
    home = made.home("north")
    agent = Agent(SiteBundle.open(home))
    shutil.copy(made.bundle("north") / "roster.json", home / "roster.json")
    with pytest.raises(PolicyError, match="another roster than this site has confirmed"):
        Agent(SiteBundle.open(home))
    assert agent.bundle.roster == first
    assert made.join("north", second.fingerprint).roster == second
    Agent(SiteBundle.open(home))


def test_new_certificates_for_the_same_parties_need_no_new_confirmation(made: Deployment) -> None:
    roster = Roster.read(made.bundle("north") / "roster.json")
    made.join("north", roster.fingerprint)
    before = (made.home("north") / "ca.crt").read_bytes()
    assert made.provision("renewed") == roster
    made.join("north")
    assert (made.home("north") / "ca.crt").read_bytes() != before


def test_a_site_keeps_its_policy_ledger_and_folder_when_another_leaves(made: Deployment) -> None:
    first = Roster.read(made.bundle("west") / "roster.json")
    bundle = made.join("west", first.fingerprint, "/data/of/ours")
    ledger = corpus_ledger(bundle)
    policy = made.home("west") / "policy.yaml"
    policy.write_text(policy.read_text().replace("max_rounds: 1000", "max_rounds: 7 # ours"))
    made.sites = dataclasses.replace(
        SITES, clients={"west": "/elsewhere", "east": None}, submitters=("submitter", "second")
    )
    make_keys(made.home("east"), "east", "client")
    make_keys(made.home("second"), "second", "submitter")
    made.hand_out()
    second = made.provision("second")
    with pytest.raises(PolicyError) as caught:
        made.join("west")
    for said in ("client east is new", "client north is gone", "submitter second is new"):
        assert said in str(caught.value)
    bundle = made.join("west", second.fingerprint)
    assert (bundle.index, bundle.data) == (0, "/data/of/ours")
    assert corpus_ledger(bundle) == ledger
    assert "max_rounds: 7 # ours" in policy.read_text()
    # Who may submit is the site's own word: a new submitter in the roster does not change it.
    assert read_policy(policy).submitters == (first.submitters[0].key.hex(),)


def test_the_policy_of_a_new_site_is_the_careful_one(made: Deployment) -> None:
    roster = Roster.read(made.bundle("north") / "roster.json")
    made.join("north", roster.fingerprint)
    written = (made.home("north") / "policy.yaml").read_text()
    submitters = json.dumps([key.hex() for key in roster.keys("submitter")])
    plain = plain_fingerprint(roster.fingerprint)
    assert written == TEMPLATE.format(note="", roster=plain, submitters=submitters)
    clauses = yaml.safe_load(written)
    assert clauses["min_colluders"] == 1 and clauses["min_committee_members"] == 3
    assert clauses["max_committee_dropout_tolerance"] == 0 and clauses["allowed_aggregation"]
    assert not clauses["allow_unprotected"]


def test_a_rehearsal_says_so_and_no_site_with_its_own_keys_joins_it(tmp_path: Path) -> None:
    made = Deployment(tmp_path)
    roster = rehearse(SITES, tmp_path / "rehearsal")
    home = tmp_path / "rehearsal" / "sites" / "north"
    assert roster.rehearsal and "# This is a rehearsal" in (home / "policy.yaml").read_text()
    SiteBundle.open(home).read_policy()
    made.provision()
    true = Roster.read(made.bundle("north") / "roster.json")
    (made.bundle("north") / "roster.json").write_text(dataclasses.replace(true, rehearsal=True).to_json())
    with pytest.raises(PolicyError, match="of a rehearsal"):
        made.join("north", dataclasses.replace(true, rehearsal=True).fingerprint)


# --- public halves ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["name", "role", "identity", "node", "signature"])
def test_a_public_half_that_its_keys_did_not_sign_is_refused(tmp_path: Path, field: str) -> None:
    half = make_keys(tmp_path / "a", "a", "client")
    other = make_keys(tmp_path / "b", "b", "helper")
    path = tmp_path / "a" / "a.pub.json"
    assert PublicHalf.read(path) == half
    values = json.loads(path.read_text())
    values[field] = json.loads((tmp_path / "b" / "b.pub.json").read_text())[field]
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="not signed by the keys in it"):
        PublicHalf.read(path)
    assert other.identity != half.identity


def test_no_two_parties_have_one_key(made: Deployment) -> None:
    # Whoever has the private keys can sign them for two names; a swapped file shows by its name.
    twin = made.root / "twin"
    shutil.copytree(made.home("north"), twin)
    (made.keys / "south.pub.json").write_text((made.keys / "north.pub.json").read_text())
    with pytest.raises(RunError, match="is of client north, not of client south"):
        made.provision("again")
    key = bytes(range(32))
    with pytest.raises(ValueError, match="used by two parties"):
        Roster("t", (Member("a", key), Member("b", key)), (), ())
    (made.keys / "south.pub.json").unlink()
    with pytest.raises(RunError, match="south"):
        made.provision("again")


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "north"
    first = make_keys(home, "north", "client")
    for path in home.rglob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    with pytest.raises(RunError):
        make_keys(home, "north", "client")
    second = replace_keys(home)
    assert (second.name, second.role) == ("north", "client")
    assert second.identity != first.identity and second.node != first.node
    with pytest.raises(ConfigError):
        make_keys(tmp_path / "x", "../x", "client")


# --- commands -----------------------------------------------------------------------------------


def call(*words: str, code: int = 0) -> str:
    result = runner.invoke(app, list(words))
    assert result.exit_code == code, (words, result.output)
    return result.output


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = pages.ROOT / "docs" / "deployment.md"
    shown = {}
    for one in pages.commands(page):
        if not one.inline:
            shown.setdefault(one.leaf, []).append(one.words[1:])
    (listed,) = re.findall(r"```yaml\n(name: .*?)```", page.read_text(), re.DOTALL)
    Path("sites.yaml").write_text(listed)
    Path("keys").mkdir()

    def everywhere(words: tuple[str, ...], *more: str) -> list[str]:
        """Give the command of hospital-a at all three."""
        names = [f"hospital-{letter}" for letter in "abc"]
        return [call(*(w.replace("hospital-a", n) for w in words), *more) for n in names]

    (init,), (submitter,) = shown["site init"], shown["submitter init"]
    seen = [said.split()[-1] for said in everywhere(init)]
    call(*submitter)
    for half in [*Path().glob("*/*.pub.json")]:
        shutil.copy(half, "keys")
    real, rehearsal = shown["provision"]
    stated = call(*real)
    said = Roster.read(Path("bundles/server/roster.json")).fingerprint
    assert said in stated and "rehearsal" not in stated
    ask, confirm = shown["site join"]
    assert call(*ask, code=2)
    stated = everywhere(tuple(word.replace("FINGERPRINT", said) for word in confirm))[0]
    assert all(f"client hospital-{x}: {seen[i]}" in stated for i, x in enumerate("abc"))
    assert "records: /srv/images" in stated
    for name in "abc":
        SiteBundle.open(Path(f"hospital-{name}")).read_policy()
    shutil.rmtree("bundles")
    stated = call(*rehearsal)
    assert "a rehearsal: all private keys are made in one place" in stated
    SiteBundle.open(Path("bundles/sites/hospital-b")).read_policy()


def test_a_site_that_rotates_its_keys_shows_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sites.yaml").write_text("clients: {a: /x, b: /x}\nsubmitters: [office]\n")
    Path("keys").mkdir()
    for name in "ab":
        call("site", "init", name)
    call("submitter", "init", "desk", "--name", "office")
    for half in ("a/a", "b/b", "desk/office"):
        shutil.copy(f"{half}.pub.json", "keys")
    call("provision", "sites.yaml", code=2)
    call("provision", "sites.yaml", "--keys", "keys", "--rehearsal", code=2)
    call("provision", "sites.yaml", "--keys", "keys", "--out", "first")
    said = Roster.read(Path("first/server/roster.json")).fingerprint
    assert "records: /y" in call("site", "join", "a", "first/sites/a", "--fingerprint", said, "--data", "/y")
    call("site", "rotate", "b")
    shutil.copy("b/b.pub.json", "keys")
    call("provision", "sites.yaml", "--keys", "keys", "--out", "second")
    stated = call("site", "join", "a", "second/sites/a", "--fingerprint", said, code=24)
    assert "client b has another key" in stated
    # The site that rotated cannot start under the old roster either.
    assert "another key for b than this site made" in call(
        "site", "join", "b", "first/sites/b", "--fingerprint", said, code=24
    )


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment of hospitals a, b and c, made by the commands, as whoever makes bundles sees it."""
    monkeypatch.chdir(tmp_path)
    listed = {"clients": dict.fromkeys([f"hospital-{x}" for x in "abc"], "/srv/images"), "submitters": ["submitter"]}
    Path("sites.yaml").write_text(yaml.safe_dump(listed))
    Path("keys").mkdir()
    for name in listed["clients"]:
        call("site", "init", name)
    call("submitter", "init", "submitter")
    for half in [*Path().glob("*/*.pub.json")]:
        shutil.copy(half, "keys")
    call("provision", "sites.yaml", "--keys", "keys", "--out", "bundles")
    join_all("bundles")
    return tmp_path


def join_all(bundles: str) -> dict[str, str]:
    """Let every site of new bundles join; return what each is asked to compare, or said."""
    said, confirmed = {}, Roster.read(Path(bundles, "server/roster.json")).fingerprint
    for bundle in sorted(Path(bundles, "sites").iterdir()):
        words = ("site", "join", bundle.name, str(bundle))
        result = runner.invoke(app, words)
        said[bundle.name] = result.output
        if result.exit_code:
            call(*words, "--fingerprint", confirmed)
        SiteBundle.open(Path(bundle.name)).read_policy()
    return said


def page(name: str) -> list[tuple[str, ...]]:
    """Return the commands of a page of docs/sites, without the program's name."""
    found = pages.commands(pages.ROOT / "docs" / "sites" / f"{name}.md")
    return [one.words[1:] for one in found if not one.inline]


# Of every change: whom the first command is for, and what the other sites are told.
CHANGES = {
    "add": "client hospital-d is new",
    "remove": "client hospital-a is gone",
    "rotate": "client hospital-b has another key",
    "replace": "client hospital-c has another key",
    "submitter": "submitter research is new",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_one_command_where_it_begins_and_one_where_bundles_are_made(office: Path, name: str) -> None:
    """Each page's commands are run as they stand; then every site joins."""
    home = Path("hospital-c")
    if name == "replace":
        ledger = home / "ledgers" / "kept.jsonl"
        ledger.parent.mkdir()
        ledger.write_text("spent\n")
        policy = (home / "policy.yaml").read_text().replace("max_rounds: 1000", "max_rounds: 7")
        (home / "policy.yaml").write_text(policy)
        old = (home / "identity.key").read_bytes()
        home.rename("backup")
    *own, made = [words for words in page(name) if words[:2] != ("site", "join")]
    assert made[0] == "provision" and len(own) == (name != "remove")
    for words in own:
        call(*words)
    for half in Path().glob("*/*.pub.json"):
        if half.parent.name not in ("keys", "backup"):
            shutil.copy(half, ".")  # it was handed out
    call(*made)
    said = join_all("bundles-2")
    others = [text for site, text in said.items() if CHANGES[name].split()[1] != site]
    assert len(others) >= 2 and all(CHANGES[name] in text for text in others), others
    listed = read_sites(Path("sites.yaml"))
    assert set(listed.clients) == {one.name for one in Roster.read(Path("bundles-2/server/roster.json")).clients}
    if name == "replace":
        assert (home / "ledgers" / "kept.jsonl").read_text() == "spent\n"
        assert read_policy(home / "policy.yaml").max_rounds == 7
        assert (home / "identity.key").read_bytes() != old


def test_renewed_certificates_are_one_command_and_nothing_to_confirm(office: Path) -> None:
    (made,) = [words for words in page("certificates") if words[0] == "provision"]
    call(*made)
    assert all("joined carefl" in text for text in join_all("bundles-2").values())


def test_a_wrong_change_leaves_the_list_of_sites_as_it_was(office: Path) -> None:
    before = Path("sites.yaml").read_bytes()
    new = ("provision", "sites.yaml", "--keys", "keys", "--out", "new")
    call(*new, "--remove", "nobody", code=2)
    call("submitter", "init", "hospital-a-2", "--name", "hospital-a")
    call(*new, "--half", "hospital-a-2/hospital-a.pub.json", code=2)  # a submitter by a client's name
    call(*new[:4], "--out", "bundles", "--remove", "hospital-a", code=40)  # the folder exists
    call("provision", "sites.yaml", "--rehearsal", "--out", "new", "--remove", "hospital-a", code=2)
    assert Path("sites.yaml").read_bytes() == before and not Path("new").exists()
    call("site", "init", "hospital-e", "--restore", "keys", code=40)  # no backup of a site
    assert not Path("hospital-e").exists()
