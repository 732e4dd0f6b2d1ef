"""The coordinator of a federation over a network: the SuperLink in this process, the sites of a roster, and a `Transport` to them."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from tauon.errors import LaunchError
from tauon.federated.flower.grid import local_grid
from tauon.federated.flower.keys import CertificateError, check_certificate, names_by_key, read_roster, refuse_readable
from tauon.federated.flower.link import SuperLink, open_link, server_context
from tauon.federated.flower.site import greeting
from tauon.federated.flower.transport import END, FlowerTransport
from tauon.federated.messages import Failure, Message
from tauon.federated.network import Trouble, parse_address

__all__ = ["Coordinator", "serve"]

WATCH_EVERY = 12 * 3600.0
"""Seconds between two looks at the certificate's end."""
END_TIMEOUT = 30.0
"""Seconds in which the sites learn that the federation is done; it takes no longer than the slowest site that answers."""
log = logging.getLogger(__name__)


class Coordinator:
    """A `Transport` to the sites of a roster, made by `serve`.

    The roster may change while it runs: sites whose line was added may join, sites whose line was removed are refused from then on. A renewed
    certificate is used for new connections.

    Args:
        link: the SuperLink of this process.
        roster: file with the sites that may join.
        certificate: the coordinator's certificate; its key is beside it.
        recipe: what sites must have in common (`join`): a hash, or JSON; sites with another one are refused. "" does not compare.
        note: called with what is worth a line in the log.
    """

    def __init__(self, link: SuperLink, roster: Path, certificate: Path, recipe: str, note: Callable[[str], None]) -> None:
        self.link, self.roster, self.certificate, self.note = link, roster, certificate, note
        self._roster_stamp, self._certificate_stamp = 0, self._certificate_stamps()
        self._watched = time.monotonic()
        self._names: dict[bytes, str] = {}
        self._read_roster()
        self.transport = FlowerTransport(local_grid(link), lambda: self._names, greeting=greeting(recipe), note=note)

    @property
    def port(self) -> int:
        """The port on which sites are served."""
        return self.link.port

    def sites(self) -> list[str]:
        """Return the names of the sites that have joined and are online, sorted."""
        self._refresh()
        return self.transport.sites()

    def ask(self, messages: Mapping[str, Message], *, timeout: float) -> dict[str, Message | Failure]:
        """Send each site its message; see `Transport.ask`."""
        self._refresh()
        return self.transport.ask(messages, timeout=timeout)

    def expected(self) -> list[str]:
        """Return the names of all sites in the roster, sorted."""
        self._refresh()
        return sorted(self._names.values())

    def wait_for(self, count: int, *, timeout: float) -> list[str]:
        """Return the sites that have joined once there are `count` of them. Raises `LaunchError` after `timeout` seconds, with who is missing."""
        give_up = time.monotonic() + timeout
        while len(joined := self.sites()) < count:
            if time.monotonic() > give_up:
                missing = ", ".join(name for name in self.expected() if name not in joined)
                raise LaunchError(f"{len(joined)} of {count} sites joined within {timeout:g} s; missing: {missing}. Look at their logs.")
            self.link.arrived.wait(0.1)
            self.link.arrived.clear()
        return joined

    def end(self) -> None:
        """Ask the sites that took part to end: the federation is done. A site that vanished may come back for some seconds; one that said goodbye, or
        was removed from the roster, is not waited for. A site that stays away does not learn it; it waits for the next one, or, if it has the
        final weights, ends by itself.
        """
        waiting, give_up = {*self.transport.traffic(), *self.sites()}, time.monotonic() + END_TIMEOUT
        while time.monotonic() < give_up and (waiting := waiting & self._may_return()):
            there, nonce = waiting & {*self.sites()}, secrets.token_hex(16)
            answers = self.ask({name: Message(END, nonce=nonce) for name in there}, timeout=min(10.0, give_up - time.monotonic()))
            waiting -= {name for name, answer in answers.items() if isinstance(answer, Message)}
            if waiting:
                self.link.arrived.wait(0.5)
                self.link.arrived.clear()

    def _may_return(self) -> set[str]:
        gone = self.link.departed()
        return {name for key, name in self._names.items() if key not in gone}

    def _refresh(self) -> None:
        self.link.check()
        if _stamp(self.roster) != self._roster_stamp:
            try:
                self._read_roster()
            except CertificateError as err:
                self._roster_stamp = _stamp(self.roster)
                self.note(Trouble(f"the roster was changed but cannot be used, and the earlier one stays: {err}"))
        if (stamps := self._certificate_stamps()) != self._certificate_stamp and self.link.tls is not None:
            self._certificate_stamp, key = stamps, self.certificate.with_suffix(".key")
            try:
                check_certificate(self.certificate)
                server_context(self.certificate, key)  # a context that fails to load a pair has lost the earlier one
                self.link.tls.load_cert_chain(self.certificate, key)
                self.note(f"{self.certificate} was renewed")
            except (LaunchError, OSError) as err:
                self.note(Trouble(f"{self.certificate} or its key was changed but cannot be used, and the earlier one stays: {err}"))
        if time.monotonic() - self._watched > WATCH_EVERY:
            self._watched = time.monotonic()
            try:
                check_certificate(self.certificate, note=self.note)
            except CertificateError as err:
                self.note(Trouble(f"sites cannot connect again: {err}"))

    def _certificate_stamps(self) -> tuple[int, int]:
        return _stamp(self.certificate), _stamp(self.certificate.with_suffix(".key"))

    def _read_roster(self) -> None:
        self._roster_stamp = _stamp(self.roster)
        sites = read_roster(self.roster)
        self.link.register(sites)
        self._names = names_by_key(sites)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def serve(
    address: str, *, folder: Path, roster: Path, recipe: str = "", note: Callable[[str], None] | None = None
) -> Iterator[Coordinator]:
    """Serve a federation on `address` until the block ends; sites that run `join` connect by themselves.

    Killed and started again, it is a new Flower run to which the same sites join; what must survive (weights, round) is the caller's checkpoint.
    When the block ends without an exception, the sites are asked to end; otherwise they wait for the next start.

    Args:
        address: `host:port` to listen on: `0.0.0.0:9443`; port 0 takes a free one (`Coordinator.port`).
        folder: where `server.crt` and `server.key` are, from `make_server_certificate`.
        roster: file with the sites that may join, one line of each site's `.pub` file.
        recipe: what sites must have in common (`join`): a hash, or JSON; sites with another one are refused. "" does not compare.
        note: called with what is worth a line in the log.

    Raises:
        CertificateError: the certificate has expired, or the roster cannot be used.
        LaunchError: the port cannot be used.
    """
    note = note or log.info
    host, port = parse_address(address, listen=True)
    certificate = folder / "server.crt"
    check_certificate(certificate, note=note)
    refuse_readable(folder / "server.key")
    read_roster(roster)  # before a port is opened
    with open_link(host, port, certificate, folder / "server.key") as link:
        coordinator = Coordinator(link, roster, certificate, recipe, note)
        note(f"port {link.port} is open since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; the roster names {len(coordinator.expected())} sites")
        yield coordinator
        coordinator.end()
