#!/usr/bin/env bash
# A rehearsal of three sites on one machine: a SuperLink, three SuperNodes and three agents, each with its own ledger,
# behind TLS on the loopback. `three_sites.sh DIR` keeps run and report in DIR. It protects nobody from whoever starts
# it, as one machine makes all keys; docs/deployment.md has the same between machines.
set -euo pipefail
home=${1:?give a folder for the run}

carefl-secure doctor
carefl-secure train --engine superlink --local-nodes 3 --epsilon 8 --rounds 2 --run-dir "$home" --yes \
    --set run.name=rehearsal --set data.records=240 --set privacy.delta=1e-3 --set simulation.dropout=0
carefl-secure status "$home/rehearsal"
carefl-secure ledger verify "$home/rehearsal"
carefl-secure report "$home/rehearsal" --dpia
