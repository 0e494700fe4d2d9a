"""``carefl-secure train``: one whole federated run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from carefl_secure.cli.figures import show, to_json
from carefl_secure.cli.reporter import RichReporter
from carefl_secure.config import load_config
from carefl_secure.errors import ConfigError, RunError
from carefl_secure.progress import SilentReporter

__all__ = ["train"]


def train(
    epsilon: Annotated[
        float | None, typer.Option(help="The most privacy that all rounds may spend.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Image folder; without it, drawn scenes.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with settings.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting; may be given repeatedly."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds.")] = None,
    clients: Annotated[int | None, typer.Option(help="Number of clients.")] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="SPACES",
            help="Label spaces of several stages under one promise, such as basic,compound.",
        ),
    ] = None,
    aggregation: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="How a round sums: pairwise (the default), committee or encrypted."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Folder that holds the run folders.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Where the clients are: inprocess (the default), ray, which plays many clients "
            "in Flower's simulation (pip install carefl-secure[ray]; performance.workers actors), "
            "or superlink, which starts Flower's SuperLink and SuperNodes on this machine with "
            "TLS and node keys.",
        ),
    ] = "inprocess",
    local_nodes: Annotated[
        int | None,
        typer.Option(help="SuperNodes of --engine superlink; as many as there are clients."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an interrupted run; takes its settings."),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE",
            help="Show the figures of every round in tensorboard or mlflow too; may be given "
            "repeatedly (pip install 'carefl-secure[tracking]').",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write the summary as JSON to standard output.")
    ] = False,
) -> None:
    """Train the adapter across clients, under a privacy budget, and keep the run in a folder.

    Progress goes to standard error, the result to standard output.
    """
    if engine not in ("inprocess", "ray", "superlink"):
        raise ConfigError(f"--engine is {engine!r}; choose inprocess, ray or superlink")
    if local_nodes is not None:
        if engine != "superlink":
            raise ConfigError("--local-nodes goes with --engine superlink only")
        clients = local_nodes if clients is None and resume is None else clients
    flags = {
        "epsilon": epsilon,
        "data": data,
        "rounds": rounds,
        "clients": clients,
        "aggregation": aggregation,
        "stages": None if stages is None else [word.strip() for word in stages.split(",")],
        "run_dir": run_dir,
        "track": track,
    }
    if resume is None:
        settings = load_config(config, set_ or (), **flags)
    elif config or set_ or any(value is not None for value in flags.values()):
        raise ConfigError("--resume takes the settings of the run it names; leave the others out")
    elif not (resume / "config.yaml").is_file():
        raise RunError(f"{resume} is not a run folder: it holds no config.yaml; give runs/<id>")
    else:
        settings = load_config(resume / "config.yaml", ())
    if settings.data.at_sites:
        raise ConfigError(
            "the records of this run are at the sites of a deployment; use carefl-secure submit, "
            "with --resume to go on"
        )
    if local_nodes not in (None, settings.federation.clients):
        raise ConfigError(
            f"--local-nodes is {local_nodes}, and the run has {settings.federation.clients} "
            "clients; give the same number, or leave one of them out"
        )
    # Heavy imports wait until the settings are known to be sound.
    from carefl_secure.runs.train import train as run

    where = None
    if engine != "inprocess":
        from carefl_secure.deployment.engines import choose_engine

        where = choose_engine(engine)
    if quiet:
        summary = run(settings, SilentReporter(), resume, where)
    else:
        with RichReporter(Console(stderr=True)) as reporter:
            summary = run(settings, reporter, resume, where)
    if json:
        typer.echo(to_json(summary))
    else:
        show(summary, Console())
