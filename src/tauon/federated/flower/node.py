"""The site's end of Flower's Fleet API: joins with its key, waits for messages, sends answers, and keeps joining when the coordinator was away.

This takes the place of Flower's SuperNode process, which polls every 3 s, ends when the coordinator starts again, and starts a process (in which
everything is imported again) for each message. Only the site opens connections; nothing listens here.
"""

from __future__ import annotations

import email.utils
import math
import secrets
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tauon.errors import LaunchError
from tauon.federated.flower.engine import load_flower
from tauon.federated.flower.gate import INSTANCE_HEADER, SEEN_HEADER, SEQUENCE_HEADER
from tauon.federated.flower.keys import CertificateError, check_certificate, load_site_key
from tauon.federated.network import Trouble, parse_address

__all__ = ["Connection", "Refused", "Unreachable"]

T = TypeVar("T")
HEARTBEAT_INTERVAL = 10.0
"""Seconds announced to Flower, whose least it is: a site counts as offline 20 s after its last sign of life."""
HEARTBEAT_EVERY = 4.0
LARGEST_OFFSET = 60.0
"""Seconds by which the site's clock may differ from the coordinator's. Signatures carry a time; below this the difference is corrected."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
SILENCE = 15.0
"""Seconds without a byte after which a connection is given up; requests for messages are answered within 10 s."""
GOODBYE = 3.0
"""Seconds for saying goodbye: a person who pressed Ctrl-C waits for it."""
LATE = "the answer was not sent: the coordinator does not wait for it any more"


class Refused(LaunchError):
    """The coordinator does not let this site in, in words: unknown key, another process with the same key, a clock that is wrong."""


class _Rejected(Refused):
    """A status from 400 to 499 for one call: what it was about is gone."""


class Unreachable(LaunchError):
    """The coordinator could not be reached for as long as the connection was to wait (`Connection.patience`)."""


class _Lost(Exception):
    """The coordinator does not know this node any more: it was started again."""


class _Signature:
    """Signs each request as Flower's node authentication asks: public key, time, signature of the time; learns what the answers' headers say."""

    def __init__(self, key: Any, clock: Callable[[], float]) -> None:
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        self.key, self.clock = key, clock
        self.public = b64encode(public_key_to_bytes(key.public_key())).decode()
        self.instance = secrets.token_hex(16)
        self.seen = "-1"
        self.offset = 0.0

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        from flwr.common.constant import TIMESTAMP_HEADER
        from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
        from flwr.supercore.primitives.asymmetric import sign_message

        stamp = datetime.fromtimestamp(self.clock() + self.offset, UTC).isoformat()
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: self.public,
                TIMESTAMP_HEADER: stamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self.key, stamp.encode("ascii"))).decode(),
                INSTANCE_HEADER: self.instance,
                SEEN_HEADER: self.seen,
            }
        )
        response = call_next(context)
        date = email.utils.parsedate_to_datetime(response.headers["date"]) if "date" in response.headers else None
        if date is not None:
            self.offset = date.timestamp() + 0.5 - self.clock()  # the header has whole seconds
        if context.rpc_method.endswith("PullMessages"):
            self.seen = response.headers.get(SEQUENCE_HEADER, "-1")
        return response


class Connection:
    """A site's connection to its coordinator.

    Args:
        address: `host:port`.
        key: file with the site's private key.
        authority: file with the certificate of the federation's authority.
        note: called with what is worth a line in the log.
        clock: seconds since 1970; for tests.
    """

    def __init__(
        self, address: str, key: Path, authority: Path, *, note: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.flower = load_flower()
        from flwr.supernode.fleet_http_client import FleetHttpClient

        parse_address(address)
        check_certificate(authority, note=note)
        self.address, self.note = address, note
        self.signature = _Signature(load_site_key(key), clock)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(authority)
        self.client = FleetHttpClient(f"https://{address}", interceptors=[self.signature], verify=context, timeout=SILENCE)
        self.node: Any = None
        self.patience = math.inf
        """Seconds without the coordinator after which the connection is given up (`Unreachable`)."""
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Connection:
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye, once; a coordinator that cannot be reached learns it from the missing heartbeat."""
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        if self._ended.is_set():
            return
        self._ended.set()
        if self.node is not None:
            self.client._client.timeout = GOODBYE
            try:
                self._call(lambda: self.client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id)))
            except Exception as err:
                self.note(f"the coordinator was not told that this site leaves: {type(err).__name__}")
        if self._beats.is_alive():
            self._beats.join(5)
        self.client.close()

    def _beat(self) -> None:
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

        while not self._ended.wait(HEARTBEAT_EVERY):
            node = self.node
            if node is None:
                continue
            try:
                self.client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_INTERVAL))
            except Exception:  # noqa: S112 - the main thread meets the same trouble, and says it
                continue

    def _call(self, call: Callable[[], T]) -> T:
        """Return what the coordinator answers. Raises `Refused`, `CertificateError`, `_Lost`, or `httpx`'s errors for what may pass."""
        import httpx

        try:
            return call()
        except httpx.HTTPStatusError as err:
            status = err.response.status_code
            if status == 409:
                raise Refused(
                    "Another process has joined with this site's key. Each site needs a key of its own, and one process."
                ) from None
            if status == 401:
                self._check_clock()
                raise _Lost from None
            raise
        except httpx.ConnectError as err:
            raise _in_words(err, self.address) or err from None

    def _check_clock(self) -> None:
        offset = self.signature.offset
        if abs(offset) > LARGEST_OFFSET:
            side = "behind" if offset > 0 else "ahead of"
            raise Refused(
                f"This machine's clock is {abs(offset):.0f} s {side} the coordinator's. Set the clock (NTP) of whichever is wrong."
            )

    def join(self) -> None:
        """Join, waiting as long as the coordinator cannot be reached. Raises `Refused` and `CertificateError`."""
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.proto.node_pb2 import Node

        request = ActivateNodeRequest(public_key=_pem(self.signature.key), heartbeat_interval=HEARTBEAT_INTERVAL)
        response = self._until_answered(lambda: self._activate(request))
        self.node = Node(node_id=response.node_id)
        self.signature.seen = "-1"

    def _activate(self, request: Any) -> Any:
        import httpx

        for attempt in (1, 2):
            try:
                response = self._call(lambda: self.client.ActivateNode(request))
                self._check_clock()
                return response
            except _Lost:  # the first request's time was wrong by a few seconds: the second one is corrected
                if attempt == 2:
                    raise Refused("The coordinator does not accept this site's signature. Compare both machines' clocks.") from None
            except httpx.HTTPStatusError as err:
                if err.response.status_code < 500 and "2004" in err.response.text:
                    name = "its line from the .pub file must be in the coordinator's roster"
                    raise Refused(f"The coordinator at {self.address} does not know this site's key: {name}.") from None
                raise
        raise AssertionError

    def _until_answered(self, call: Callable[[], T]) -> T:
        """Repeat a call while the coordinator cannot be reached, with growing pauses; say so once."""
        import httpx

        pause, silent, begun = FIRST_PAUSE, False, time.monotonic()
        while True:
            try:
                result = call()
            except httpx.TransportError as err:
                reason = str(err) or type(err).__name__
            except httpx.HTTPStatusError as err:
                if err.response.status_code < 500:
                    raise _Rejected(f"The coordinator at {self.address} answered with status {err.response.status_code}.") from None
                reason = f"status {err.response.status_code}"
            else:
                if silent:
                    self.note(f"connected to the coordinator at {self.address} again")
                return result
            if time.monotonic() - begun > self.patience:
                raise Unreachable(f"The coordinator at {self.address} could not be reached for {self.patience:g} s ({reason}).")
            if not silent:
                silent = True
                self.note(Trouble(f"the coordinator at {self.address} cannot be reached ({reason}); trying again until it can"))
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.6 * pause)

    def receive(self) -> Any:
        """Return the next message (Flower's `Message`), or None after about 10 s without one. Joins again where it must."""
        from flwr.proto.fleet_pb2 import PullMessagesRequest

        try:
            response = self._until_answered(lambda: self._call(lambda: self.client.PullMessages(PullMessagesRequest(node=self.node))))
            if not response.messages_list:
                return None
            return self._fetch(response.messages_list[0], response.message_object_trees[0])
        except _Lost:
            self.note("the coordinator was started again; joining again")
            self.join()
            return None

    def _fetch(self, proto: Any, tree: Any) -> Any:
        """Return a whole message, or None where its parts are gone because the coordinator does not wait for an answer any more."""
        import httpx
        from flwr.app.message import make_message
        from flwr.common.serde_utils import metadata_from_proto
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
        from flwr.supercore.inflatable.inflatable_utils import (
            ObjectPullError,
            ObjectUnavailableError,
            inflate_object_from_contents,
        )

        metadata = metadata_from_proto(proto.metadata)
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.node, metadata.run_id)
        try:
            objects = [node.object_id for node in iterate_object_tree(tree)]
            contents = {o: self._until_answered(lambda o=o: self._call(lambda: pull(o))) for o in objects}  # type: ignore[misc]
            confirm = ConfirmMessageReceivedRequest(node=self.node, run_id=metadata.run_id, message_object_id=metadata.message_id)
            self._call(lambda: self.client.ConfirmMessageReceived(confirm))
        except (_Rejected, ObjectPullError, ObjectUnavailableError, httpx.HTTPError) as err:
            self.note(f"a message could not be fetched: {str(err) or type(err).__name__}")
            return None
        whole: Any = inflate_object_from_contents(metadata.message_id, contents)
        return make_message(metadata, content=whole.content)

    def reply(self, message: Any) -> bool:
        """Send an answer (Flower's `Message`); return whether the coordinator took it. An answer that comes too late is dropped, and said."""
        import httpx
        from flwr.app.message import remove_content_from_message
        from flwr.common.serde import message_to_proto
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
        from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

        try:
            with no_object_id_recompute():
                message.metadata.__dict__["_message_id"] = message.object_id
                request = PushMessagesRequest(
                    node=self.node, messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[get_object_tree(message)],
                )  # fmt: skip
                response = self._until_answered(lambda: self._call(lambda: self.client.PushMessages(request)))
                push = make_push_object_fn_protobuf(self.client.PushObject, self.node, message.metadata.run_id, response.session_id)
                objects = get_all_nested_objects(message)
                for o in dict.fromkeys(response.objects_to_push):
                    self._until_answered(lambda o=o: self._call(lambda: push(o, objects[o].deflate())))  # type: ignore[misc]
            if not response.objects_to_push:
                self.note(LATE)
            return bool(response.objects_to_push)
        except (_Lost, _Rejected, ObjectPushError, httpx.HTTPError):
            self.note(LATE)
            return False


def _pem(key: Any) -> bytes:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return bytes(public_key_to_bytes(key.public_key()))


def _in_words(err: Exception, address: str) -> CertificateError | None:
    """What a failed TLS handshake means, or None where the coordinator just cannot be reached."""
    text = str(err)
    if "certificate has expired" in text:
        return CertificateError(f"The certificate of the coordinator at {address} has expired. Ask there for a new one (`server.crt`).")
    if "not yet valid" in text:
        return CertificateError(f"The certificate of the coordinator at {address} is not valid yet: compare both machines' clocks.")
    if "Hostname mismatch" in text or "IP address mismatch" in text:
        return CertificateError(
            f"The coordinator's certificate is not for {address}. Use the name in its certificate, or have a new one made."
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CertificateError(f"The coordinator at {address} has a certificate of another authority than this site's ca.crt: {text}")
    return None
