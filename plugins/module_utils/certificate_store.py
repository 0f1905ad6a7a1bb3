# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keys and certificates on a host, and the authority that signs them. Standard library and openssl; also installed on hosts.

A set (key, certificate, bundle, root) is a directory of its own below .versions, and /etc/moat/tls/<name> is a symbolic link to
it: one rename replaces the whole set, so its files never mismatch, whenever a run is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import http.client
import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING or __package__:
    from ansible_collections.moat.inference.plugins.module_utils import certificate
else:  # on a host this file lies beside the other
    import certificate

TLS = "/etc/moat/tls"
LOCKS = "/run/moat-certificate"
VERSIONS = ".versions"
# bundle.pem is what the service reads as its group; the rest is root's, and the key root's alone
MODES = {"key.pem": 0o600, "cert.pem": 0o644, "bundle.pem": 0o640, "root.pem": 0o644}
REQUEST_TIMEOUT = 20


class CertificateError(Exception):
    """Something that the reader of a message can act on."""


def openssl(*arguments: str, accept: Sequence[int] = (0,)) -> str:
    """Run openssl and return its output, empty for an accepted failure; keys go by path only."""
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise CertificateError("openssl is not installed; install the package openssl") from error
    if done.returncode not in accept:
        raise CertificateError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else ""


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Keep the play and the timer from changing one set at the same time."""
    os.makedirs(LOCKS, mode=0o700, exist_ok=True)
    with open(os.path.join(LOCKS, name + ".lock"), "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Store:
    """The sets below one directory."""

    def __init__(self, base: str = "", group: str = "root", owner: tuple[int, int] = (0, 0)) -> None:
        self.base = base or TLS
        self.group = group
        self._owner = owner

    def path(self, name: str) -> str:
        return os.path.join(self.base, name)

    def read(self, name: str) -> certificate.Found:
        """Return what is on disk, from one set even when it is replaced meanwhile."""
        return read_set(os.path.realpath(self.path(name)))

    def foreign(self, name: str) -> bool:
        """Say whether something that is not ours lies where the link belongs."""
        return os.path.lexists(self.path(name)) and not os.path.islink(self.path(name))

    def names(self) -> list[str]:
        """Return the names of all sets."""
        try:
            return sorted(entry.name for entry in os.scandir(self.base) if entry.is_symlink())
        except FileNotFoundError:
            return []

    def _gid(self, file: str) -> int:
        return grp.getgrnam(self.group).gr_gid if file == "bundle.pem" else self._owner[1]

    def wrong_attributes(self, name: str) -> list[str]:
        """Return the files whose mode or owner is not as it shall be."""
        wrong = []
        for file, mode in MODES.items():
            try:
                info = os.lstat(os.path.join(self.path(name), file))
                if (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) != (mode, self._owner[0], self._gid(file)):
                    wrong.append(file)
            except FileNotFoundError:
                continue
            except KeyError:  # the group is made later in the run
                wrong.append(file)
        return wrong

    def set_attributes(self, directory: str, files: Sequence[str] = tuple(MODES)) -> None:
        for file in files:
            path = os.path.join(directory, file)
            os.chmod(path, 0o600)
            os.chown(path, self._owner[0], self._gid(file))
            os.chmod(path, MODES[file])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[str]:
        """Give a directory that only root can enter; it is gone afterwards unless it was published."""
        versions = os.path.join(self.base, VERSIONS)
        os.makedirs(versions, mode=0o755, exist_ok=True)
        directory = tempfile.mkdtemp(prefix=name + ".", dir=versions)
        try:
            yield directory
        finally:
            if os.path.realpath(self.path(name)) != os.path.realpath(directory):
                shutil.rmtree(directory, ignore_errors=True)

    def publish(self, name: str, directory: str) -> None:
        """Put a complete set in the place of the present one."""
        for file in os.listdir(directory):
            if file not in MODES:
                os.unlink(os.path.join(directory, file))
        self.set_attributes(directory)
        os.chmod(directory, 0o755)
        for file in MODES:
            _sync(os.path.join(directory, file))
        _sync(directory)
        _sync(os.path.dirname(directory))
        before = os.path.realpath(self.path(name))
        link = directory + ".link"
        os.symlink(os.path.relpath(directory, self.base), link)
        os.replace(link, self.path(name))
        _sync(self.base)
        self._prune(name, {os.path.basename(directory), os.path.basename(before)})

    def _prune(self, name: str, keep: set[str]) -> None:
        """Remove what killed runs left and older sets; the one before stays for whoever is reading it now."""
        versions = os.path.join(self.base, VERSIONS)
        for entry in os.listdir(versions):
            if entry.split(".")[0] == name and entry not in keep:
                path = os.path.join(versions, entry)
                if os.path.islink(path):
                    os.unlink(path)
                else:
                    shutil.rmtree(path)

    def remove(self, name: str) -> None:
        """Remove a set with all its versions."""
        if os.path.islink(self.path(name)):
            os.unlink(self.path(name))
        if os.path.isdir(os.path.join(self.base, VERSIONS)):
            self._prune(name, set())


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(directory: str, file: str, text: str) -> str:
    """Write a file that only root can read and return its path."""
    path = os.path.join(directory, file)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as handle:
        handle.write(text)
    return path


def read_set(directory: str) -> certificate.Found:
    """Return what the files of a directory hold."""
    files = {}
    for name in certificate.FILES:
        path = os.path.join(directory, name)
        try:
            with open(path, encoding="utf-8") as handle:
                files[name] = handle.read()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except UnicodeDecodeError:
            files[name] = ""
    if set(files) != set(certificate.FILES):
        return certificate.Found(files)
    key, cert, root = (os.path.join(directory, name) for name in ("key.pem", "cert.pem", "root.pem"))
    # a failure here is a finding, not an error
    shown = openssl(
        *["x509", "-in", cert, "-noout", "-serial", "-subject", "-nameopt", "RFC2253"],
        *["-dates", "-ext", "subjectAltName", "-pubkey"],
        accept=range(256),
    )
    public = openssl("pkey", "-in", key, "-pubout", "-passin", "pass:", accept=range(256))
    verify = ["verify", "-no_check_time", "-no-CApath", "-no-CAstore", "-CAfile", root, "-untrusted", cert, cert]
    try:
        parsed = certificate.parse_certificate(shown)
    except ValueError:
        parsed = None
    return certificate.Found(files, parsed, public.strip(), bool(openssl(*verify, accept=range(256))))


class Authority:
    """The HTTP interface of step-ca, trusted by one root only."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._parts = urlsplit(url)

    def sign(self, root: str, request: str, token: str, lifetime: int) -> str:
        """Return the chain for a certificate request and a single-use token."""
        body = {"csr": request, "ott": token, "notAfter": f"{lifetime}s"}
        return self._ask("sign", body, ssl.create_default_context(cafile=root))

    def renew(self, directory: str, request: str | None) -> str:
        """Return the chain of a new certificate with the names of the present one, which proves who asks."""
        context = ssl.create_default_context(cafile=os.path.join(directory, "root.pem"))
        context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
        if request is None:
            return self._ask("renew", None, context)
        return self._ask("rekey", {"csr": request}, context)

    def _ask(self, action: str, body: dict[str, Any] | None, context: ssl.SSLContext) -> str:
        host, port = self._parts.hostname or "", self._parts.port or 443
        connection = http.client.HTTPSConnection(host, port, timeout=REQUEST_TIMEOUT, context=context)
        text = "" if body is None else json.dumps(body)
        try:
            connection.request("POST", "/1.0/" + action, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(1 << 20)
        except (OSError, http.client.HTTPException) as error:
            raise CertificateError(f"{self.url} could not be asked: {error or type(error).__name__}") from error
        finally:
            connection.close()
        try:
            content = json.loads(answer)
        except ValueError:
            content = {}
        content = content if isinstance(content, dict) else {}
        if response.status != 201:
            reason = content.get("message") or response.reason
            raise CertificateError(f"{self.url} refused to {action}: {response.status} {reason}")
        chain = "".join(
            "".join(certificate.blocks(str(part))) for part in content.get("certChain") or [content.get("crt")]
        )
        if not chain:
            raise CertificateError(f"{self.url} sent no certificate")
        return chain


def make_key(directory: str) -> None:
    """Make a P-256 key in a staging directory."""
    write(directory, "key.pem", "")
    key = os.path.join(directory, "key.pem")
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)


def make_request(directory: str, request: certificate.Request) -> str:
    """Return a certificate request in PEM, signed by the key of a staging directory."""
    config = write(directory, "request.cnf", certificate.request_config(request))
    return openssl("req", "-new", "-sha256", "-config", config, "-key", os.path.join(directory, "key.pem"))


def _complete(directory: str, chain: str) -> certificate.Found:
    """Add the chain to a staging directory that has key and root, and return the set."""
    with open(os.path.join(directory, "key.pem"), encoding="utf-8") as handle:
        key = handle.read()
    write(directory, "cert.pem", chain)
    write(directory, "bundle.pem", certificate.bundle(chain, key))
    return read_set(directory)


def _accept(found: certificate.Found, faults: Sequence[str], now: int) -> certificate.Certificate:
    """Return the certificate of a set, or say why it is not taken."""
    if faults or found.certificate is None:
        raise CertificateError(
            f"the authority's answer is refused: {', '.join(faults)}; look at the authority's settings"
        )
    if found.certificate.not_before > now + 60:
        ahead = found.certificate.not_before - now
        raise CertificateError(
            f"the certificate begins in {ahead} s; the clocks differ: synchronise this host or the authority"
        )
    return found.certificate


def enrol(
    store: Store, request: certificate.Request, authority: Authority, root: str, token: str, now: int
) -> certificate.Certificate:
    """Make a key, have it certified and put the set in place."""
    with store.stage(request.name) as directory:
        root_path = write(directory, "root.pem", "".join(certificate.blocks(root)))
        make_key(directory)
        chain = authority.sign(root_path, make_request(directory, request), token, request.lifetime)
        found = _complete(directory, chain)
        issued = _accept(found, certificate.recreate_reasons(request, found, root, now), now)
        store.publish(request.name, directory)
    return issued


def renew(
    store: Store, request: certificate.Request, authority: Authority, new_key: bool, now: int
) -> certificate.Certificate:
    """Replace a certificate that is still valid by a new one for the same names."""
    present = os.path.realpath(store.path(request.name))
    before = read_set(present)
    with store.stage(request.name) as directory:
        write(directory, "root.pem", before.files["root.pem"])
        if new_key:
            make_key(directory)
        else:
            write(directory, "key.pem", before.files["key.pem"])
        chain = authority.renew(present, make_request(directory, request) if new_key else None)
        found = _complete(directory, chain)
        faults = certificate.faults_on_disk(found, "", now)
        old, new = before.certificate, found.certificate
        if old and new and (old.common_name, old.sans) != (new.common_name, new.sans):
            faults.append("other names than before")
        issued = _accept(found, faults, now)
        store.publish(request.name, directory)
    return issued
