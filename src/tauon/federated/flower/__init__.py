"""Federated training over a network, on Flower 1.41: `serve` at the coordinator, `join` at each site, keys and certificates for both.

    make_authority(folder); make_server_certificate(folder, ["fed.example.org"])      # once, at the coordinator
    make_site_key(folder, "hospital-a")                                              # once, at each site; its line goes into the roster

    with serve("0.0.0.0:9443", folder=folder, roster=folder / "roster") as coordinator:      # a Transport
        coordinator.wait_for(3, timeout=600)
        answers = coordinator.ask({"hospital-a": Message("train", 1, nonce)}, timeout=60)

    join("fed.example.org:9443", site, key=folder / "hospital-a.key", authority=folder / "ca.crt")      # until the coordinator ends it

Carries messages as bytes, whatever they mean. The coordinator's process holds Flower's SuperLink, a site's process its training: nothing is started
for a message, and no program travels.
"""

from tauon.federated.flower.coordinator import Coordinator, serve
from tauon.federated.flower.engine import load_flower
from tauon.federated.flower.keys import (
    CertificateError,
    certificate_days,
    certificate_fingerprint,
    check_certificate,
    describe_keys,
    load_site_key,
    make_authority,
    make_server_certificate,
    make_site_key,
    read_roster,
    site_fingerprint,
)
from tauon.federated.flower.node import Refused
from tauon.federated.flower.site import Answerer, join, load_site, site_app
from tauon.federated.flower.transport import FlowerTransport

__all__ = [
    "Answerer",
    "CertificateError",
    "Coordinator",
    "FlowerTransport",
    "Refused",
    "certificate_days",
    "certificate_fingerprint",
    "check_certificate",
    "describe_keys",
    "join",
    "load_flower",
    "load_site",
    "load_site_key",
    "make_authority",
    "make_server_certificate",
    "make_site_key",
    "read_roster",
    "serve",
    "site_app",
    "site_fingerprint",
]
