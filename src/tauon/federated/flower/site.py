"""A site of a federation over a network: one process that stays alive, joins the coordinator, and answers its messages one after another."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tauon import __version__
from tauon.errors import Interrupted, LaunchError, TauonError
from tauon.federated.flower.engine import load_flower
from tauon.federated.flower.node import Connection, Refused, Unreachable
from tauon.federated.flower.transport import CONNECT, CONNECTED, END, ENDED
from tauon.federated.flower.wire import read_bytes, write_error, write_message
from tauon.federated.messages import Message, MessageError, Site
from tauon.federated.network import Trouble
from tauon.federated.stopping import stop_at_once

__all__ = ["Answerer", "greeting", "join", "load_site", "site_app"]

MOST_REMEMBERED = 10_000
"""Messages whose digest is kept, so that a repeated one is refused."""
LAST_PATIENCE = 60.0
"""Seconds for which a site that has the final weights waits for a coordinator that cannot be reached."""
log = logging.getLogger(__name__)


def greeting(recipe: str) -> Message:
    """Return what the coordinator asks each process that joins: does it run the same Tauon, the same Flower, the same recipe?"""
    return Message(CONNECT, fields={"version": __version__, "flower": load_flower(), "recipe": recipe})


class Answerer:
    """Turns Flower's messages into calls of a `Site`, and what comes back into answers.

    Args:
        site: answers everything but the transport's own messages.
        recipe: what must be the same at the coordinator: a hash, or JSON, of which the differences are named; "" does not compare.
        note: called with what is worth a line in the log.
    """

    def __init__(self, site: Site, recipe: str = "", *, note: Callable[[str], None] | None = None) -> None:
        self.site, self.recipe, self.note = site, recipe, note or log.info
        self.ended = False
        self.has_final_weights = False
        """Whether the weights that training ended with have come: then only the end of the federation is missing."""
        self.refusal = ""
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __call__(self, message: Any) -> Any:
        """Return Flower's answer to Flower's message. A `TauonError` is answered in its words; of any other exception, only its type leaves the site."""
        from flwr.app import Message as FlowerMessage

        try:
            return FlowerMessage(write_message(self._answer(read_bytes(message.content))), reply_to=message)
        except Interrupted:
            raise  # the training was stopped from outside, and with it the site
        except TauonError as err:
            reason = str(err)
            cause = "" if err.__cause__ is None else f" ({err.__cause__})"  # stays here
            self.note(Trouble(f"answered with a refusal: {reason}{cause}"))
        except Exception as err:
            log.exception("the site failed to answer")
            reason = f"the site failed with {type(err).__name__}; its own log has the details"
            self.note(Trouble(f"failed with {type(err).__name__}: {err}"))
        return FlowerMessage(write_error(reason), reply_to=message)

    def _answer(self, data: bytes) -> Message:
        message, digest = Message.from_bytes(data), hashlib.sha256(data).digest()
        if digest in self._seen:
            raise MessageError(f"a message that was answered before ({message.kind}, round {message.round}): a replay")
        self._seen[digest] = None
        if len(self._seen) > MOST_REMEMBERED:
            self._seen.popitem(last=False)
        if message.kind == CONNECT:
            return self._join(message)
        if message.kind == END:
            self.ended = True
            return message.answer(ENDED)
        answer = self.site.answer(message)
        if message.kind in ("final", "train"):  # they stay the final ones while they are evaluated
            self.has_final_weights = message.kind == "final"
        return answer

    def _join(self, message: Message) -> Message:
        mine = {"version": __version__, "flower": load_flower(), "recipe": self.recipe}
        for key, name in (("version", "Tauon"), ("flower", "Flower")):
            if message.fields.get(key) != mine[key]:
                self.refusal = f"the coordinator has {name} {message.fields.get(key)}, this site {mine[key]}: install the same version"
        asked = str(message.fields.get("recipe", ""))
        if asked and mine["recipe"] and asked != mine["recipe"]:
            self.refusal = (
                f"the coordinator has another recipe: {_differences(asked, mine['recipe'])}. Both need the same: compare the files"
            )
        if self.refusal:
            raise LaunchError(self.refusal)
        return message.answer(CONNECTED, mine)


def _differences(theirs: str, ours: str) -> str:
    """The first settings that differ, or, where the texts are not JSON, how they begin."""
    try:
        one, two = (dict(_leaves(json.loads(text))) for text in (theirs, ours))
    except ValueError:
        return f"{theirs[:12]}..., this site has {ours[:12]}..."
    changed = [key for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
    said = [f"{key} is {one.get(key, 'not set')}, at this site {two.get(key, 'not set')}" for key in changed[:4]]
    return "; ".join(said) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of a JSON tree."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(tree)[:60]


def join(
    address: str,
    site: Site,
    *,
    key: Path,
    authority: Path,
    recipe: str = "",
    note: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Take part in a federation until its coordinator ends it; wait for the coordinator, and join again, whenever it cannot be reached.
    Once the final weights have come it waits 60 s, no longer: the coordinator has ended.

    The site lives in this process and answers in this thread; a second thread says every 4 s that it is alive. Connections are opened by the
    site only, to `address`.

    Args:
        address: `host:port` of the coordinator; the host must be in its certificate.
        site: what answers.
        key: the site's private key, from `make_site_key`; only its owner may read it.
        authority: certificate of the federation's authority, `ca.crt`.
        recipe: what must be the same at the coordinator, compared at joining: a hash, or JSON, of which the differences are named; "" does not compare.
        note: called with what is worth a line in the log.
        clock: seconds since 1970; for tests.

    Raises:
        Refused: the coordinator does not let this site in, or has another version or recipe.
        CertificateError: a key or a certificate cannot be used.
        Interrupted: by Ctrl-C or SIGTERM, after saying goodbye.
    """
    note = note or log.info
    connection = Connection(address, key, authority, note=note, clock=clock)
    answerer = Answerer(site, recipe, note=note)
    with stop_at_once(), connection:
        try:
            connection.join()
            note(f"joined the coordinator at {address}")
            while not answerer.ended:
                connection.patience = LAST_PATIENCE if answerer.has_final_weights else math.inf
                message = connection.receive()
                if message is not None:
                    connection.reply(answerer(message))
                if answerer.refusal:
                    raise Refused(f"This site does not take part: {answerer.refusal}")
        except Unreachable as err:
            note(f"{err} The final weights have come, so the federation is over for this site.")
            return
        except KeyboardInterrupt:
            raise Interrupted("The site left the federation. Run the same command again to take part again.") from None
    note("the coordinator has ended the federation")


def load_site(path: str, settings: Mapping[str, Any]) -> Site:
    """Return `module:factory` called with the settings as keyword arguments. Raises `LaunchError`."""
    module_name, colon, name = path.partition(":")
    if not colon or not name:
        raise LaunchError(f"A site is named as module:factory; got {path!r}")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as err:
        raise LaunchError(f"{path} cannot be imported: {err}") from err
    return cast(Site, factory(**settings))


def site_app(make_site: Callable[[Any], Site]) -> Any:
    """Return a Flower `ClientApp` that answers for a site: for Flower's own runtimes, its simulation on Ray included.

    Args:
        make_site: called with Flower's `Context` for each message (Flower keeps no object between messages); return the same object for the
            same `context.node_id` to keep the state of a site.
    """
    load_flower()
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def answer(message: Any, context: Any) -> Any:
        return Answerer(make_site(context))(message)

    app.query()(answer)
    return app
