"""Flower's `Grid` over a SuperLink in the same process: what is sent does not pass through HTTP on the coordinator's side.

Beside Flower's interface it has `discard`, which frees messages that no caller waits for any more, and `wait`, which returns when a site has sent
something. Answers are handed out once all of their chunks have arrived, so one slow site does not hold up the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from tauon.federated.flower.link import SuperLink

__all__ = ["LocalGrid", "local_grid"]

MOST_OBJECTS = 5000
"""Objects of one answer at most; a chunk has 5 MiB."""
LARGEST_ANSWER = (64 << 20, 4)
"""An answer has this many bytes at most, or this many times those of the question: a longer one is refused while it arrives."""


class LocalGrid:
    """What `local_grid` adds to Flower's `Grid`. Thread-safe as far as Flower's link state is."""

    link: SuperLink

    def __init__(self, link: SuperLink) -> None:
        self.link = link
        self._arriving: dict[str, tuple[Any, list[str]]] = {}
        self._limits: dict[str, int] = {}

    def get_nodes(self) -> Iterable[Any]:
        """Return Flower's `NodeInfo` of every node that is online."""
        state = self.link.state
        return list(state.get_node_info(node_ids=list(state.get_nodes(self.link.run_id))))

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the nodes that are online."""
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        """Store messages for their nodes and wake the nodes; return an id for each, "" where it was refused."""
        from flwr.app.message import remove_content_from_message
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

        state, run_id, ids, keys = self.link.state, self.link.run_id, [], set()
        with no_object_id_recompute():
            for message in messages:
                message.metadata.__dict__["_run_id"] = run_id
                message.metadata.__dict__["_message_id"] = message.object_id
                session = state.start_session(run_id)
                bare = remove_content_from_message(message)
                stored, missing = state.store_message_and_object_tree(bare, get_object_tree(message), session)
                if stored:
                    objects = get_all_nested_objects(message)
                    for object_id in dict.fromkeys(missing):
                        state.store_object(run_id, session, object_id, objects[object_id].deflate())
                    size = sum(len(state.object_store.get(object_id) or b"") for object_id in objects)
                    self._limits[message.metadata.message_id] = max(LARGEST_ANSWER[0], LARGEST_ANSWER[1] * size)
                    keys |= {node.public_key for node in state.get_node_info(node_ids=[message.metadata.dst_node_id])}
                ids.append(message.metadata.message_id if stored else "")
        if keys:
            self.link.pushed(*keys)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        """Return the answers to these messages that have arrived whole; each once."""
        from flwr.supercore.object_store import NoObjectInStoreError

        state = self.link.state
        wanted = set(message_ids)
        asked = wanted - self._arriving.keys()
        with state.lock:  # Flower drops the answer of a node that went offline after it: so answers are taken first
            answers = {i: state.message_ins_id_to_message_res_id[i] for i in asked if i in state.message_ins_id_to_message_res_id}
            found = [state.message_res_store[answer_id] for answer_id in answers.values()]
            with contextlib.suppress(ValueError):  # asked in a run that Flower ended since, because this machine slept
                found += state.get_message_res(message_ids=asked - answers.keys(), run_id=self.link.run_id)
            state.delete_messages(message_ins_ids={m.metadata.reply_to_message_id for m in found})
        complete = []
        for message in found:
            if message.has_error():
                self._limits.pop(message.metadata.reply_to_message_id, None)
                state.object_store.delete(message.metadata.message_id)
                complete.append(message)
                continue
            try:
                tree = state.object_store.get_object_tree(message.metadata.message_id)
            except NoObjectInStoreError:
                continue
            self._arriving[message.metadata.reply_to_message_id] = (message, _objects(tree))
        return complete + [self._inflate(asked_id) for asked_id in wanted & self._arriving.keys() if self._is_complete(asked_id)]

    def _excess(self, asked_id: str) -> str:
        """Why an answer is too long, or ""."""
        objects, store = self._arriving[asked_id][1], self.link.state.object_store
        size, limit = sum(len(store.get(o) or b"") for o in objects), self._limits.get(asked_id, LARGEST_ANSWER[0])
        if len(objects) > MOST_OBJECTS:
            return f"an answer of more than {MOST_OBJECTS} parts"
        return f"an answer of more than {limit:,} bytes" if size > limit else ""

    def _is_complete(self, asked_id: str) -> bool:
        store = self.link.state.object_store
        return all(store.get(o) for o in self._arriving[asked_id][1]) or bool(self._excess(asked_id))

    def _inflate(self, asked_id: str) -> Any:
        from flwr.app import Error
        from flwr.app.message import make_message
        from flwr.common.constant import ErrorCode
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        excess = self._excess(asked_id)
        message, objects = self._arriving.pop(asked_id)
        self._limits.pop(asked_id, None)
        store, message_id = self.link.state.object_store, message.metadata.message_id
        try:
            if excess:
                raise ValueError(excess)
            whole: Any = inflate_object_from_contents(message_id, {o: store.get(o) for o in objects})
            return make_message(metadata=message.metadata, content=whole.content)  # its own metadata are what the site wrote there
        except Exception as err:  # bytes of a site: whatever is wrong with them is that site's failure
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"its answer cannot be read: {err}")
            return make_message(metadata=message.metadata, error=error)
        finally:
            store.delete(message_id)

    def discard(self, message_ids: Iterable[str]) -> None:
        """Forget messages and what has arrived of their answers: late answers are refused when they come."""
        state = self.link.state
        for asked_id in message_ids:
            self._limits.pop(asked_id, None)
            if asked_id in self._arriving:
                state.object_store.delete(self._arriving.pop(asked_id)[0].metadata.message_id)
            answer_id = state.message_ins_id_to_message_res_id.get(asked_id)
            state.delete_messages(message_ins_ids={asked_id})
            for object_id in filter(None, (asked_id, answer_id)):
                state.object_store.delete(object_id)

    def wait(self, seconds: float) -> None:
        """Return when a site has sent something, or after `seconds`."""
        self.link.arrived.wait(seconds)
        self.link.arrived.clear()


def _objects(tree: Any) -> list[str]:
    """Ids of a tree's objects, each once, children first; stops beyond what an answer may have."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    ids: dict[str, None] = {}
    for node in iterate_object_tree(tree):
        ids[node.object_id] = None
        if len(ids) > MOST_OBJECTS:
            break
    return list(ids)


def local_grid(link: SuperLink) -> Any:
    """Return Flower's `Grid` over the SuperLink of this process."""
    from flwr.serverapp.grid import Grid

    class LinkGrid(LocalGrid, Grid):
        run = property(lambda self: self.link.state.get_run_info(run_ids=[self.link.run_id])[0])

        def set_run(self, run: Any) -> None:
            raise RuntimeError("the run belongs to the SuperLink of this process")

        def create_message(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("deprecated in Flower: use its Message")

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            raise RuntimeError("use push_messages and pull_messages, which keep our own deadlines")

    return LinkGrid(link)
