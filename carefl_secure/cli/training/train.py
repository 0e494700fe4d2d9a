"""``carefl-secure train``, ``plan`` and ``pretrain``: one federated run, its forecast, and the embedded model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from carefl_secure.cli import console as cli
from carefl_secure.cli.reporter import running, show, to_json
from carefl_secure.config import Config, load_config
from carefl_secure.config.explain import FLAGS
from carefl_secure.errors import ConfigError
from carefl_secure.run_folder import Interrupted, check_start, new_run_id


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of ``train``; those left out are None."""

    epsilon: Annotated[float | None, typer.Option(help="Privacy budget of all rounds together.")] = None
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Image folder; else synthetic scenes.")] = None
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with settings.")] = None
    set_: cli.Words = None
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None
    clients: Annotated[int | None, typer.Option(help="Number of clients.")] = None
    stages: Annotated[
        str | None,
        typer.Option(metavar="SPACES", help="Label spaces of stages under one budget, such as basic,compound."),
    ] = None
    aggregation: Annotated[
        str | None,
        typer.Option(metavar="PROTOCOL", help="Aggregation protocol: pairwise (the default), committee or encrypted."),
    ] = None
    run_dir: Annotated[Path | None, typer.Option(metavar="PATH", help="Folder that holds the run folders.")] = None
    engine: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Where the clients run: inprocess (the default), ray for many clients in Flower's "
            "simulation (pip install 'carefl-secure\\[ray]'; performance.workers actors), or "
            "superlink for Flower's SuperLink and SuperNodes on this machine, with TLS and node keys.",
        ),
    ] = "inprocess"
    local_nodes: Annotated[
        int | None, typer.Option(help="Number of SuperNodes of --engine superlink; it equals the number of clients.")
    ] = None
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Resume a run, with its own settings.")] = None
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="Send the figures of every round to tensorboard, mlflow or wandb too; repeatable "
            "(pip install 'carefl-secure\\[tracking]', '\\[wandb]'). Nothing goes over a network unless asked for.",
        ),
    ] = None

    def settings(self) -> Config:
        """Return the checked configuration; ConfigError where options contradict each other."""
        if self.engine not in ("inprocess", "ray", "superlink"):
            raise ConfigError(f"--engine is {self.engine!r}; choose inprocess, ray or superlink")
        if self.local_nodes is not None and self.engine != "superlink":
            raise ConfigError("--local-nodes goes with --engine superlink only")
        flags: dict[str, Any] = {name: getattr(self, name, None) for name in FLAGS}
        if self.stages is not None:
            flags["stages"] = [word.strip() for word in self.stages.split(",")]
        if self.clients is None and self.resume is None:
            flags["clients"] = self.local_nodes
        if self.resume is None:
            settings = load_config(self.config, self.set_ or (), **flags)
        elif self.config or self.set_ or any(value is not None for value in flags.values()):
            raise ConfigError("--resume takes the settings of the run it names; leave the others out")
        else:
            cli.require_run(self.resume)
            settings = load_config(self.resume / "config.yaml", ())
        if settings.data.at_sites:
            raise ConfigError(
                "the records of this run are at the sites of a deployment; use carefl-secure "
                "submit, with --resume to go on"
            )
        if self.local_nodes not in (None, settings.federation.clients):
            raise ConfigError(
                f"--local-nodes is {self.local_nodes}, and the run has {settings.federation.clients} clients; give "
                "the same number, or leave one of them out"
            )
        return settings


@cli.unfold
def train(options: TrainOptions, yes: cli.Yes = False, quiet: cli.Quiet = False, json: cli.Json = False) -> None:
    """Train the adapter across clients under a privacy budget, and keep the run in a folder.

    Progress goes to standard error, the result to standard output. A forecast from public records
    comes before the first round; a run that is nearly all noise must be confirmed, or --yes given.
    """
    settings = options.settings()
    cli.require_corpus(settings.data.source)
    begun = settings.run.dir / (settings.run.name or new_run_id())
    check_start(options.resume or begun, resume=options.resume is not None)
    # Heavy imports wait until the settings are checked.
    from carefl_secure.runs.train import train as run

    where = None
    if options.engine != "inprocess":
        from carefl_secure.deployment.engines import choose_engine

        where = choose_engine(options.engine)
    try:
        with running(quiet) as reporter:
            summary = run(settings, reporter, options.resume, where, cli.confirmation(yes))
    except Interrupted as stop:
        if options.engine != "inprocess":
            stop.again += f" --engine {options.engine}"
        raise
    if json:
        typer.echo(to_json(summary))
    else:
        show(summary)


def pretrain(
    output: Annotated[Path, typer.Argument(help="Folder to write the model to.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, weights and order.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; without it, the full number.")] = None,
    quiet: cli.Quiet = False,
) -> None:
    """Train the small base model on synthetic scenes and write it to a folder."""
    from carefl_secure.model.pretrain import pretrain as pretrain_base

    with running(quiet) as reporter:
        written = pretrain_base(output, seed=seed, steps=steps, reporter=reporter)
    typer.echo(f"model: {written}")


def plan(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file with settings.")] = None,
    set_: cli.Words = None,
    data: Annotated[str | None, typer.Option(metavar="PATH", help="Corpus folder; else synthetic scenes.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Privacy budget of all rounds together.")] = None,
    quiet: cli.Quiet = False,
    json: cli.Json = False,
) -> None:
    """Forecast a run: its noise, and how much of each update it would be.

    Reads the corpus and the base model, computes gradients of public records, and spends nothing.
    """
    settings = load_config(config, set_ or (), data=data, epsilon=epsilon)
    cli.require_corpus(settings.data.source)
    from carefl_secure.runs.prepare import plan_only

    with running(quiet) as reporter:
        found = plan_only(settings, reporter)
    if json:
        cli.write_json(found)
    else:
        cli.say(found["budget"])
        cli.say(found["forecast"]["sentence"])
