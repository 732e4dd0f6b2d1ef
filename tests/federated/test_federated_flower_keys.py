"""Keys and certificates: what openssl and cryptography make of them, who may read them, when they end, and which rosters are refused."""

from __future__ import annotations

import ipaddress
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tauon.federated.flower import (
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

x509 = pytest.importorskip("cryptography.x509", reason="keys need: pip install 'tauon[federated]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("authority")
    make_authority(place)
    make_server_certificate(place, ["fed.example.org", "10.0.0.1"], days=100)
    return place


def test_openssl_verifies_the_chain_and_nothing_signed_by_another_authority(folder: Path, tmp_path: Path) -> None:
    def verify(authority: Path) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(authority), str(folder / "server.crt")]
        return subprocess.run(command, capture_output=True).returncode == 0

    assert verify(folder / "ca.crt") and not verify(make_authority(tmp_path))


def test_the_certificate_names_hosts_and_addresses_and_is_on_p384(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1")]
    assert certificate.public_key().curve.name == "secp384r1"
    assert certificate_days(folder / "server.crt") == pytest.approx(100, abs=0.01)


def test_a_server_certificate_does_not_outlive_its_authority(tmp_path: Path) -> None:
    make_authority(tmp_path, days=10)
    make_server_certificate(tmp_path, ["a"], days=365)
    assert certificate_days(tmp_path / "server.crt") == pytest.approx(10, abs=0.01)


def test_private_keys_are_for_their_owner_only_and_never_overwritten(folder: Path, tmp_path: Path) -> None:
    make_site_key(tmp_path, "hospital-a")
    for path in (folder / "ca.key", folder / "server.key", tmp_path / "hospital-a.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    before = (tmp_path / "hospital-a.key").read_bytes()
    with pytest.raises(CertificateError, match="never overwritten"):
        make_site_key(tmp_path, "hospital-a")
    assert (tmp_path / "hospital-a.key").read_bytes() == before


def test_a_certificate_is_announced_30_days_before_its_end_and_refused_after_it(folder: Path) -> None:
    notes: list[str] = []
    now = datetime.now(UTC)
    check_certificate(folder / "server.crt", now=now + timedelta(days=69), note=notes.append)
    assert not notes
    check_certificate(folder / "server.crt", now=now + timedelta(days=75), note=notes.append)
    assert len(notes) == 1 and "expires in 25 days" in notes[0]
    with pytest.raises(CertificateError, match="expired on"):
        check_certificate(folder / "server.crt", now=now + timedelta(days=101), note=notes.append)
    with pytest.raises(CertificateError, match="Set the clock"):
        check_certificate(folder / "server.crt", now=now - timedelta(days=1), note=notes.append)


def test_the_roster_line_is_what_the_private_key_has(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    lines = [make_site_key(tmp_path, name) for name in ("a", "b")]
    (tmp_path / "roster").write_text(f"# sites\n\n{lines[0]}   # joined in May\n{lines[1]}\n")
    roster = read_roster(tmp_path / "roster")
    assert list(roster) == ["a", "b"] and (tmp_path / "a.pub").read_text() == lines[0] + "\n"
    key = load_site_key(tmp_path / "a.key").public_key()
    assert roster["a"] == key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no site"),
        ("a", "cannot be read"),
        ("a ecdsa-sha2-nistp384 AAAA", "cannot be read"),
        ("{line}\n{line}", "twice"),
        ("{line}\n{twin}", "b has the key of a"),
        ("../a {key}", "letters, digits"),
        ("a {p256}", "not on the curve P-384"),
        ("a {ed25519}", "not on the curve P-384"),
    ],
)
def test_a_roster_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line = make_site_key(tmp_path, "a")
    other = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    edwards = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    key = line.partition(" ")[2]
    (tmp_path / "roster").write_text(text.format(line=line, twin=f"b {key}", key=key, p256=other, ed25519=edwards))
    with pytest.raises(CertificateError, match=words):
        read_roster(tmp_path / "roster")


@pytest.mark.parametrize("name", ["missing", "empty", "server"])
def test_a_site_key_that_is_none_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.key"
    if name != "missing":
        path.write_bytes((folder / "server.key").read_bytes() if name == "server" else b"")
        path.chmod(0o600)
    with pytest.raises(CertificateError):
        load_site_key(path)


def test_fingerprints_are_those_of_openssl_and_ssh_keygen(folder: Path, tmp_path: Path) -> None:
    printed = subprocess.run(
        ["openssl", "x509", "-in", str(folder / "ca.crt"), "-noout", "-fingerprint", "-sha256"], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip().rpartition("=")[2] == certificate_fingerprint(folder / "ca.crt")
    line = make_site_key(tmp_path, "hospital-a")
    (tmp_path / "bare").write_text(line.partition(" ")[2] + "\n")
    printed = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "bare")], capture_output=True, text=True, check=True)
    assert printed.stdout.split()[1] == site_fingerprint(line)
    (tmp_path / "roster").write_text(f"# ours\n{line}\n")
    assert dict(describe_keys(tmp_path)) == {"hospital-a.pub": site_fingerprint(line), "roster: hospital-a": site_fingerprint(line)}
    shown = dict(describe_keys(folder))
    assert certificate_fingerprint(folder / "ca.crt") in shown["ca.crt"] and "in 3650 days" in shown["ca.crt"]
    assert "for fed.example.org, 10.0.0.1; ends" in shown["server.crt"]


def test_a_certificate_is_renewed_only_by_the_authority_that_sites_have(folder: Path, tmp_path: Path) -> None:
    """With `ca.key` offline, no new authority is made in passing, whose certificates no site would accept."""
    make_authority(tmp_path)
    (tmp_path / "ca.key").rename(tmp_path / "offline.key")
    with pytest.raises(CertificateError, match="Copy the key back"):
        make_authority(tmp_path)
    assert not (tmp_path / "ca.key").exists()
    (tmp_path / "ca.key").write_bytes((folder / "ca.key").read_bytes())
    with pytest.raises(CertificateError, match="chmod 600"):
        make_server_certificate(tmp_path, ["a"])
    (tmp_path / "ca.key").chmod(0o600)
    with pytest.raises(CertificateError, match=r"is not the key of .*ca\.crt"):
        make_server_certificate(tmp_path, ["a"])
    (tmp_path / "offline.key").rename(tmp_path / "ca.key")
    assert make_server_certificate(tmp_path, ["a"]).exists()


@pytest.mark.parametrize("host", ["https://fed.example.org", "fed.example.org:9443", "", "fed example", "hôpital.fr", "[fed]", "a..b"])
def test_what_is_no_host_is_refused_before_anything_is_written(tmp_path: Path, host: str) -> None:
    make_authority(tmp_path)
    with pytest.raises(CertificateError, match="name or the address of a machine"):
        make_server_certificate(tmp_path, ["fed.example.org", host])
    assert not (tmp_path / "server.key").exists()


def test_an_address_in_brackets_is_an_address(tmp_path: Path) -> None:
    make_authority(tmp_path)
    path = make_server_certificate(tmp_path, ["[::1]", "fe80::2", "*.example.org"])
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("::1"), ipaddress.ip_address("fe80::2")]
    assert names.get_values_for_type(x509.DNSName) == ["*.example.org"]


def test_no_key_is_written_beside_what_belongs_to_an_earlier_one(tmp_path: Path) -> None:
    """A half-made pair would need a second move, and lie there as if it were one."""
    make_authority(tmp_path)
    make_server_certificate(tmp_path, ["a"])
    (tmp_path / "server.key").unlink()
    with pytest.raises(CertificateError, match=r"server\.crt exists"):
        make_server_certificate(tmp_path, ["a"])
    make_site_key(tmp_path, "hospital-a")
    (tmp_path / "hospital-a.key").unlink()
    with pytest.raises(CertificateError, match=r"hospital-a\.pub exists"):
        make_site_key(tmp_path, "hospital-a")
    assert not (tmp_path / "server.key").exists() and not (tmp_path / "hospital-a.key").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match="cannot be written"):
        make_site_key(tmp_path / "file" / "keys", "hospital-a")


def test_what_an_expired_certificate_is_replaced_with_is_said(folder: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=4000)
    with pytest.raises(CertificateError, match="tauon federate keys coordinator HOST --keys"):
        check_certificate(folder / "server.crt", now=later)
    with pytest.raises(CertificateError, match="new authority"):
        check_certificate(folder / "ca.crt", now=later)
