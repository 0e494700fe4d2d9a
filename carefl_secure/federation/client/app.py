"""The Flower client app: carries bytes between messages and a `ClientSession` or a helper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from carefl_secure.errors import CareflError, ConfigError, ProtocolError
from carefl_secure.federation.aggregation.base import Helper
from carefl_secure.federation.aggregation.registry import helper_actions
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.transport.error_codes import Party, refusal
from carefl_secure.federation.transport.exchange import role_message
from carefl_secure.federation.transport.messages import Fields, adapter_of, pack, piggyback, piggybacked

_STATE = "carefl-secure"
_HEADER = ("round", "plan")

Sessions = Callable[[int], ClientSession]
Helpers = Callable[[int], Helper | None]
Action = Callable[[ClientSession, RecordDict], RecordDict]


def _header(fields: Fields) -> tuple[int, bytes]:
    return fields.integer("round"), fields.octets("plan")


def _map(content: RecordDict, name: str) -> dict[int, bytes]:
    return Fields(content, maps=[name]).map(name)


def _advertise(session: ClientSession, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER, *(["key"] if session.encrypts else []))
    message = session.advertise(*_header(fields), fields.octets("key") if session.encrypts else b"")
    return pack(index=session.index, message=message)


def _advertise_prefetch(session: ClientSession, content: RecordDict) -> RecordDict:
    message = session.advertise_prefetch(*_header(Fields(content, *_HEADER)))
    return pack(index=session.index, message=message)


def _submit(session: ClientSession, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER, maps=["announcements"])
    adapter = adapter_of(content, session.dimension)
    return pack(upload=session.submit(*_header(fields), adapter, fields.map("announcements")))


def _role(session: ClientSession, content: RecordDict) -> RecordDict:
    Fields(content, "ask")
    return role_message(session.index, helper=False)


def _masked(session: ClientSession, content: RecordDict) -> RecordDict:
    fields = Fields(content, *_HEADER, maps=["shares"])
    adapter = adapter_of(content, session.dimension)
    return pack(upload=session.release(*_header(fields), adapter, fields.map("shares")))


def _sign(session: ClientSession, content: RecordDict) -> RecordDict:
    fields = Fields(content, "shared", "survivors")
    return pack(signature=session.sign(fields.integers("shared"), fields.integers("survivors")))


_ACTIONS: Mapping[str, Action] = {
    "query.role": _role,
    "query.advertise": _advertise,
    "query.share": lambda session, content: pack(shares=session.share(_map(content, "peers"))),
    "train.masked": _masked,
    "train.submit": _submit,
    "query.sign": _sign,
    "query.unmask": lambda session, content: pack(answer=session.unmask(_map(content, "signatures"))),
    "query.advertise_prefetch": _advertise_prefetch,
    "query.share_prefetch": lambda session, content: pack(shares=session.share_prefetch(_map(content, "peers"))),
}
_PIGGYBACKED = {"query.sign": "query.advertise_prefetch", "query.unmask": "query.share_prefetch"}


def answer(party: ClientSession | Helper, name: str, content: RecordDict) -> RecordDict:
    """Take one step of a party, and the next round's that is piggybacked on it; ProtocolError if not its own."""
    if isinstance(party, Helper):
        return party.answer(name, content)
    if name not in _ACTIONS:
        raise ProtocolError(f"a client was asked for {name}, which only a helper answers")
    later = piggybacked(content)
    if later is not None and name not in _PIGGYBACKED:
        raise ProtocolError(f"key prefetch: nothing is piggybacked on {name}")
    reply = _ACTIONS[name](party, content)
    return reply if later is None else piggyback(reply, _ACTIONS[_PIGGYBACKED[name]](party, later))


def build_client_app(
    sessions: Sessions,
    on_refusal: Callable[[int, CareflError], None] | None = None,
    *,
    keep_state: bool = False,
    helpers: Helpers | None = None,
    protocol: str = "",
) -> ClientApp:
    """Return the app that every node runs: its actions are those of clients, and of helpers (``helper_actions``).

    Parameters
    ----------
    sessions : callable(int) -> ClientSession
        Gives the session of a ``partition-id``: one object for the whole run, or a new one a time with ``keep_state``.
    on_refusal : callable(int, CareflError) -> None, optional
        Called on the client with each error that was refused with; its text may describe data and must stay there.
    keep_state : bool, optional
        Keep the session in the node's Flower context, for engines with a process per message. It never leaves the
        node, and its secrets are sealed. A helper's round key is never stored, so helpers need a process that stays.
    helpers : callable(int) -> Helper or None, optional
        Gives the helper of a ``partition-id``, one object for the whole run; None for a client.
    protocol : str, optional
        The protocol of the run, where it is of another package and brings steps of its own.

    Guarantees
    ----------
    A reply holds the one value its step is for and nothing else, but for the keys of the next round that are
    piggybacked on ``query.sign`` and ``query.unmask`` where that was agreed. In ``train.masked`` and ``train.submit``
    that is the masked upload: no number of records, no loss, no time. A refusal is a number with a fixed sentence. A
    client takes no helper's part and a helper no client's.
    """
    app = ClientApp()
    steps = helper_actions(protocol)

    def handle(name: str, message: Message, context: Context) -> Message:
        partition = context.node_config.get("partition-id")
        if type(partition) is not int:
            raise ConfigError("the node has no partition-id; start it with one in its node config")
        helper = None
        try:
            helper = None if helpers is None else helpers(partition)
            if helper is not None:
                return Message(answer(helper, name, message.content), reply_to=message)
            session = sessions(partition)
            if keep_state and _STATE in context.state:
                session.restore(Fields(context.state, "session", name=_STATE).octets("session"))
            content = answer(session, name, message.content)
            if keep_state:
                context.state[_STATE] = ConfigRecord({"session": session.save()})
        except CareflError as error:
            if on_refusal is not None:
                on_refusal(partition, error)
            party: Party = "client" if helper is None else helper.party
            return Message(refusal(error, party), reply_to=message)
        return Message(content, reply_to=message)

    for name in (*_ACTIONS, *steps):
        kind, _, action = name.partition(".")
        register = app.train if kind == "train" else app.query
        register(action)(functools.partial(handle, name))
    return app
