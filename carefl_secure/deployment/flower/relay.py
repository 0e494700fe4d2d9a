"""What Flower executes: relays that carry bytes to software installed on the same machine.

A SuperNode runs whatever app its SuperLink sends it, so the app must hold nothing worth having. The
client relay hands every message to the site's own agent over a Unix socket and returns its answer;
the server relay does the same between Flower's Grid and the process that runs the rounds. Keys,
records, ledger and policy stay with the agent, which Flower neither delivers nor starts. A copy of
this file is the whole Flower app, so it imports only Flower and the standard library.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Client, Connection
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

PROPOSE = "query.propose"
ACTIONS = (
    *(PROPOSE, "query.role", "query.advertise", "query.share", "train.masked", "train.submit"),
    *("query.sign", "query.unmask", "query.advertise_prefetch", "query.share_prefetch"),
    *("query.committee_announce", "query.committee_announce_prefetch", "query.committee_open"),
    *("query.committee_answer", "query.committee_consent", "query.committee_recover"),
    *("query.holder_key", "query.open_sum"),
    *os.environ.get("CAREFL_ACTIONS", "").split(),
)
"""Every step that a relay passes on; ``CAREFL_ACTIONS`` adds those of other packages' protocols."""

SERVER_SOCKET = "CAREFL_SERVER_SOCKET"
"""Names the socket of the process that runs the rounds, in the environment of a SuperLink."""

_GONE = 5  # Flower's own code for a node that is unreachable
_PAUSE, _LONG_PAUSE = 0.1, 1.0
_BATCH = 8  # replies on this machine at a time
_MOST = 1 << 31


def send(link: Connection, head: Mapping[str, Any], contents: Sequence[RecordDict] = ()) -> None:
    """Write a head of JSON values and Flower records to a socket; `TypeError` for other than config and arrays."""
    blobs: list[bytes] = []
    places: dict[int, int] = {}  # what many contents share, such as an adapter, is sent once

    def out(value: Any) -> Any:
        if isinstance(value, bytes):
            place = places.setdefault(id(value), len(blobs))
            if place == len(blobs):
                blobs.append(value)
            return {"blob": place}
        return [out(one) for one in value] if isinstance(value, list) else value

    def one(record: Any) -> Any:
        if isinstance(record, ConfigRecord):
            return ["config", [[name, out(value)] for name, value in record.items()]]
        if not isinstance(record, ArrayRecord):
            raise TypeError(f"a relay carries no {type(record).__name__}")
        arrays = [[name, a.dtype, list(a.shape), a.stype, out(bytes(a.data))] for name, a in record.items()]
        return ["arrays", arrays]

    frozen = [[[name, one(record)] for name, record in content.items()] for content in contents]
    encoded = json.dumps({"head": dict(head), "contents": frozen}).encode()
    link.send_bytes(len(blobs).to_bytes(4, "big") + encoded)
    for blob in blobs:
        link.send_bytes(blob)


def receive(link: Connection) -> tuple[dict[str, Any], list[RecordDict]]:
    """Read what `send` wrote; `EOFError` or `ConnectionError` when the other side is gone."""
    frame = link.recv_bytes(_MOST)
    whole = json.loads(frame[4:])
    blobs = [link.recv_bytes(_MOST) for _ in range(int.from_bytes(frame[:4], "big"))]

    def back(value: Any) -> Any:
        if isinstance(value, dict):
            return blobs[value["blob"]]
        return [back(one) for one in value] if isinstance(value, list) else value

    def one(kind: str, entries: Any) -> Any:
        if kind == "config":
            return ConfigRecord({name: back(value) for name, value in entries})
        return ArrayRecord(
            {name: Array(dtype, tuple(shape), stype, back(data)) for name, dtype, shape, stype, data in entries}
        )

    contents = [RecordDict({name: one(*record) for name, record in content}) for content in whole["contents"]]
    return whole["head"], contents


client = ClientApp()
server = ServerApp()


def _pass_on(message: Message, context: Context) -> Message:
    """Hand one message to the site's agent and return its answer."""
    head = {"action": message.metadata.message_type, "group": message.metadata.group_id}
    try:
        with Client(str(context.node_config["agent"]), "AF_UNIX") as link:
            send(link, head, [message.content])
            answer, contents = receive(link)
    except (OSError, EOFError, KeyError):
        # An agent that is not there is a silent client, not a refusal.
        return Message(Error(_GONE, "the site's agent is not reachable"), reply_to=message)
    if "code" in answer:
        return Message(Error(int(answer["code"]), str(answer["reason"])), reply_to=message)
    return Message(contents[0], reply_to=message)


for _name in ACTIONS:
    _kind, _, _action = _name.partition(".")
    (client.train if _kind == "train" else client.query)(_action)(_pass_on)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the process that runs the rounds until it says stop; its end is the run's failure."""
    with Client(os.environ[SERVER_SOCKET], "AF_UNIX") as link:
        while True:
            head, contents = receive(link)
            if head["op"] == "stop":
                send(link, {})
                return
            if head["op"] == "nodes":
                send(link, {"nodes": [str(node) for node in grid.get_node_ids()]})
            else:
                _exchange(grid, link, head, contents)


def _exchange(grid: Grid, link: Connection, head: Mapping[str, Any], contents: Sequence[RecordDict]) -> None:
    """Send one message per content and hand back the replies by their place, as they come."""
    messages = [
        Message(content, int(node), action, group_id=head["group"])
        for content, node, action in zip(contents, head["nodes"], head["actions"], strict=True)
    ]
    # `send_and_receive` polls every 3 s only. Each poll costs the SuperLink work, so the interval
    # grows with the wait: a tenth of the wait is lost at most.
    ids = list(grid.push_messages(messages))
    open_ids = {name: place for place, name in enumerate(ids) if name}
    begun = time.monotonic()
    end = begun + head["timeout"]
    over = not open_ids
    while not over:
        # Looked at before the last pull: however long the other side takes, no reply goes stale.
        over = time.monotonic() >= end
        waiting = list(open_ids)
        for start in range(0, len(waiting), _BATCH):
            answers: list[dict[str, Any]] = []
            bodies: list[RecordDict] = []
            for reply in grid.pull_messages(waiting[start : start + _BATCH]):
                place = open_ids.pop(reply.metadata.reply_to_message_id, None)
                if place is None:
                    continue
                if reply.has_error():
                    error = {"code": reply.error.code, "reason": str(reply.error.reason)}
                    answers.append({"place": place, **error})
                else:
                    answers.append({"place": place, "body": len(bodies)})
                    bodies.append(reply.content)
            if answers:
                send(link, {"answers": answers}, bodies)
        over = over or not open_ids
        if not over:
            waited = time.monotonic() - begun
            time.sleep(min(_LONG_PAUSE, max(_PAUSE, waited / 10)))
    send(link, {"answers": []})
