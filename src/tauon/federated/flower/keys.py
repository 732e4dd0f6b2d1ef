"""Keys and certificates of a federation: an authority, the coordinator's certificate, one key for each site, and the roster of sites.

The coordinator proves who it is by TLS: sites trust one authority, which they get as a file (`ca.crt`), and nothing else. A site proves who it
is by an elliptic-curve key on P-384, whose public half the coordinator keeps in its roster. All private keys are files that only their owner reads.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tauon.errors import LaunchError, MissingExtra
from tauon.federated.network import Trouble

__all__ = [
    "CertificateError",
    "certificate_days",
    "certificate_fingerprint",
    "check_certificate",
    "describe_keys",
    "load_site_key",
    "make_authority",
    "make_server_certificate",
    "make_site_key",
    "read_roster",
    "refuse_readable",
    "site_fingerprint",
]

WARN_DAYS = 30
"""Days before the end of a certificate from which its end is announced."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")


class CertificateError(LaunchError):
    """A key or a certificate that is missing, cannot be read, has expired, or belongs to something else."""


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as err:
        raise MissingExtra("keys and certificates of a federation", "federated") from err
    return x509, serialization, ec


def _write(path: Path, data: bytes, *, private: bool = False) -> Path:
    """Write a file that must not exist yet: a key that was overwritten is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as err:
        raise CertificateError(f"{path} cannot be written ({err.strerror}). Choose another folder: --keys.") from None
    return path


def _exists(path: Path) -> CertificateError:
    return CertificateError(f"{path} exists, and a key is never overwritten. Move it away first, or choose another folder.")


def _refuse_existing(*paths: Path) -> None:
    """Raise `CertificateError` if one of the files exists, before any of them is written: a key is never next to the certificate of another."""
    for path in paths:
        if path.exists():
            raise _exists(path)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise CertificateError(f"{path}: {what} cannot be read ({err.strerror}).") from None


def _pem(key: Any) -> bytes:
    _, serialization, _ = _cryptography()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem


def make_authority(folder: Path, *, name: str = "Tauon federation", days: int = 3650) -> Path:
    """Make the authority that signs the coordinator's certificate: `ca.key`, which stays with whoever runs the federation, and `ca.crt` for every site.

    Args:
        folder: where both files go.
        name: name of the federation in the certificate.
        days: days for which it is valid.

    Returns:
        the path of `ca.crt`. Raises `CertificateError` if a file exists.
    """
    x509, serialization, ec = _cryptography()
    if (folder / "ca.crt").exists() and not (folder / "ca.key").exists():
        raise CertificateError(
            f"{folder / 'ca.crt'} is there, but its key {folder / 'ca.key'} is not. Copy the key back for a moment: it signs a new server certificate. "
            "For a new authority, whose ca.crt every site needs, move ca.crt away."
        )
    _refuse_existing(folder / "ca.key", folder / "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = {name: name in ("key_cert_sign", "crl_sign") for name in _USAGES}
    certificate = (
        _builder(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _sha384())
    )
    _write(folder / "ca.key", _pem(key), private=True)
    return _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(folder: Path, hosts: Sequence[str], *, days: int = 365) -> Path:
    """Make the coordinator's `server.key` and `server.crt`, signed by the authority in the same folder.

    Args:
        folder: where `ca.key` and `ca.crt` are.
        hosts: the names and addresses under which sites reach the coordinator: `["fed.example.org", "10.0.0.1"]`.
        days: days for which it is valid; never longer than the authority.

    Returns:
        the path of `server.crt`. Raises `CertificateError`.
    """
    x509, serialization, ec = _cryptography()
    if not hosts:
        raise CertificateError("A server certificate needs the names or addresses under which sites reach the coordinator: got none.")
    names = [_host(h) for h in hosts]
    _refuse_existing(folder / "server.key", folder / "server.crt")
    authority, signer = _authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    usage = {name: name == "digital_signature" for name in _USAGES}
    certificate = (
        _builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, hosts[0][:64])]), authority.subject, key.public_key(), days)
        .not_valid_after(min(_today() + timedelta(days=days), authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, _sha384())
    )
    _write(folder / "server.key", _pem(key), private=True)
    return _write(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _authority(folder: Path) -> tuple[Any, Any]:
    """Return certificate and private key of the authority. Raises `CertificateError` where they do not belong together, or have expired."""
    _, serialization, _ = _cryptography()
    check_certificate(folder / "ca.crt")
    certificate, path = _load_certificate(folder / "ca.crt"), folder / "ca.key"
    data = _read(path, "the authority's private key")
    refuse_readable(path)
    try:
        signer = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError) as err:
        raise CertificateError(f"{path} is not a private key in PEM format without a password: {err}") from None
    if signer.public_key() != certificate.public_key():
        raise CertificateError(
            f"{path} is not the key of {folder / 'ca.crt'}: sites would trust nothing that it signs. Restore the right one."
        )
    return certificate, signer


def refuse_readable(path: Path) -> None:
    """Raise `CertificateError` for a private key that is missing, or that other users of the machine can read."""
    try:
        mode = path.stat().st_mode
    except OSError as err:
        raise CertificateError(f"{path}: the private key cannot be read ({err.strerror}).") from None
    if mode & 0o077:
        raise CertificateError(f"{path} can be read by other users. Run: chmod 600 {path}")


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _sha384() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA384()


def _today() -> datetime:
    return datetime.now(UTC)


def _builder(subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    x509, _, _ = _cryptography()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(_today() - timedelta(hours=1))  # clocks differ a little
    return builder.not_valid_after(_today() + timedelta(days=days)) if issuer == subject else builder


def _host(host: str) -> Any:
    """Return a name of the certificate. Raises `CertificateError` for what is no name and no address."""
    x509, _, _ = _cryptography()
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    if len(host) > 253 or not HOST.fullmatch(host):
        raise CertificateError(
            f"{host!r} is not the name or the address of a machine: without https:// and without a port, such as fed.example.org, 10.0.0.1 or ::1. "
            "Names with other letters than a to z are written as DNS has them (xn--...)."
        )
    return x509.DNSName(host)


def make_site_key(folder: Path, name: str) -> str:
    """Make a site's key: `<name>.key`, which never leaves the site, and `<name>.pub`, one line for the coordinator's roster.

    Returns:
        that line: `hospital-a ecdsa-sha2-nistp384 AAAA...`. Raises `CertificateError`.
    """
    _, serialization, ec = _cryptography()
    _check_name(name, "the site's name")
    _refuse_existing(folder / f"{name}.key", folder / f"{name}.pub")
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    _write(folder / f"{name}.key", private, private=True)
    _write(folder / f"{name}.pub", f"{name} {public}\n".encode())
    return f"{name} {public}"


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        raise CertificateError(f"{what} is {name!r}: use 1 to 64 letters, digits, '.', '_' and '-', starting with a letter or a digit.")


def load_site_key(path: Path) -> Any:
    """Return the site's private key (`cryptography`'s object). Raises `CertificateError`, also where others may read the file."""
    _, serialization, ec = _cryptography()
    data = _read(path, "the site's private key")
    refuse_readable(path)
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError) as err:
        raise CertificateError(f"{path} is not a private key in OpenSSH's format: {err}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise CertificateError(f"{path} is not a key on the curve P-384. Make one with `make_site_key`.")
    return key


def read_roster(path: Path) -> dict[str, bytes]:
    """Return name to public key (PEM) of the sites that may join.

    One site a line, as `make_site_key` writes it: its name, then the key in OpenSSH's format. Empty lines and lines with `#` are comments.
    Raises `CertificateError` with the line's number for a key that is not on P-384, a name or a key that is there twice, or no site at all.
    """
    _, serialization, ec = _cryptography()
    sites: dict[str, bytes] = {}
    for number, line in enumerate(_read(path, "the roster of sites").decode(errors="replace").splitlines(), 1):
        name, _, key_text = line.partition("#")[0].strip().partition(" ")
        if not name:
            continue
        where = f"{path}:{number}"
        _check_name(name, f"{where}: the site's name")
        try:
            key = serialization.load_ssh_public_key(key_text.strip().encode())
        except (ValueError, TypeError, KeyError) as err:
            raise CertificateError(f"{where}: the public key of {name} cannot be read ({err}). Copy the line from {name}.pub.") from None
        except Exception as err:  # UnsupportedAlgorithm, which is not a ValueError
            raise CertificateError(f"{where}: the public key of {name} is of an unsupported type ({err}).") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise CertificateError(f"{where}: the public key of {name} is not on the curve P-384 (ecdsa-sha2-nistp384).")
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        twin = next((other for other, known in sites.items() if known == pem), None)
        if name in sites or twin:
            raise CertificateError(f"{where}: {name} is in the roster twice" if name in sites else f"{where}: {name} has the key of {twin}")
        sites[name] = pem
    if not sites:
        raise CertificateError(f"{path} names no site. Add the line of each site's .pub file.")
    return sites


def _load_certificate(path: Path) -> Any:
    x509, _, _ = _cryptography()
    try:
        return x509.load_pem_x509_certificate(_read(path, "the certificate"))
    except ValueError as err:
        raise CertificateError(f"{path} is not a certificate in PEM format: {err}") from None


def certificate_days(path: Path, *, now: datetime | None = None) -> float:
    """Return the days until a certificate expires; negative once it has. Raises `CertificateError` where it is not a certificate."""
    left: timedelta = _load_certificate(path).not_valid_after_utc - (now or _today())
    return left.total_seconds() / 86400


def check_certificate(path: Path, *, now: datetime | None = None, note: Callable[[str], None] | None = None) -> None:
    """Refuse a certificate that has expired or is not valid yet with `CertificateError`; announce through `note` one that ends within 30 days."""
    certificate, today = _load_certificate(path), now or _today()
    end, days = certificate.not_valid_after_utc, certificate_days(path, now=today)
    if days <= 0:
        raise CertificateError(
            f"{path} expired on {end:%Y-%m-%d %H:%M} UTC, and this machine's clock says {today:%Y-%m-%d %H:%M}. {_renewal(path)}"
        )
    if today < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc
        raise CertificateError(
            f"{path} is valid from {begin:%Y-%m-%d %H:%M} UTC, but this machine's clock says {today:%Y-%m-%d %H:%M}. Set the clock."
        )
    if days < WARN_DAYS and note is not None:
        note(Trouble(f"{path} expires in {days:.0f} days, on {end:%Y-%m-%d}. {_renewal(path)}"))


def _renewal(path: Path) -> str:
    """How a certificate is replaced."""
    if path.name == "ca.crt":
        return "The coordinator makes a new authority, and sends its ca.crt to every site."
    key = path.with_suffix(".key")
    return f"Move {path} and {key} away, and make new ones: tauon federate keys coordinator HOST --keys {path.parent}"


def names_by_key(sites: Mapping[str, bytes]) -> dict[bytes, str]:
    """Return public key (PEM) to name."""
    return {key: name for name, key in sites.items()}


# ---------------------------------------------------------------------------------------------- what is compared over the telephone


def certificate_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a certificate as `openssl x509 -noout -fingerprint -sha256` prints it: 1F:0C:..."""
    digest: bytes = _load_certificate(path).fingerprint(_hash_256())
    return digest.hex(":").upper()


def site_fingerprint(line: str) -> str:
    """Return the SHA-256 of the public key in a line of the roster, as `ssh-keygen -l` prints it. Raises `CertificateError`.

    >>> site_fingerprint("a ecdsa-sha2-nistp384 AAAA")
    'SHA256:cJ6AyISHokEeHuTfufIqhhSS0gxHZRUMDHlKvXD4FHw'
    """
    words = line.split()
    try:
        return "SHA256:" + b64encode(hashlib.sha256(b64decode(words[2], validate=True)).digest()).decode().rstrip("=")
    except (IndexError, ValueError):
        raise CertificateError(f"{line[:80]!r} is not a line of a roster: name, ecdsa-sha2-nistp384, key.") from None


def _hash_256() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def describe_keys(folder: Path) -> list[tuple[str, str]]:
    """Return (file or site, what it is) for the certificates and public keys in a folder: fingerprints, names, ends. Secret keys are not read."""
    x509, _, _ = _cryptography()
    found = []
    for path in (folder / "ca.crt", folder / "server.crt"):
        if not path.exists():
            continue
        end = f"ends {_load_certificate(path).not_valid_after_utc:%Y-%m-%d}, in {certificate_days(path):.0f} days"
        if path.name == "server.crt":
            names = _load_certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            end = f"for {', '.join(str(name.value) for name in names)}; {end}"
        found.append((path.name, f"{end}; {certificate_fingerprint(path)}"))
    for path in sorted(folder.glob("*.pub")):
        found.append((path.name, site_fingerprint(_read(path, "the public key").decode(errors="replace"))))
    roster = folder / "roster"
    lines = _read(roster, "the roster of sites").decode(errors="replace").splitlines() if roster.exists() else []
    for line in lines:
        if line := line.partition("#")[0].strip():
            found.append((f"roster: {line.split()[0]}", site_fingerprint(line)))
    return found
