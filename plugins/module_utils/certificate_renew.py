# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Program of moat-certificate@.service: renew a certificate when it is due and see that its user serves it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from ansible_collections.moat.inference.plugins.module_utils import certificate, certificate_store
    from ansible_collections.moat.inference.plugins.module_utils.certificate_served import Service
    from ansible_collections.moat.inference.plugins.module_utils.certificate_store import CertificateError
else:  # on a host this file lies beside the others
    import certificate
    import certificate_store
    from certificate_served import Service
    from certificate_store import CertificateError

SETTINGS = "/etc/moat/certificate"


def say(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def when(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment))


def check(found: certificate.Found, now: int) -> certificate.Certificate:
    """Return the certificate if it can renew itself; a lost or expired one needs a token, so it is an error."""
    faults = certificate.faults_on_disk(found, "", now)
    if found.certificate is None or faults:
        raise CertificateError(
            f"unusable ({', '.join(faults)}) and cannot renew itself; apply the role certificate, which enrols anew"
        )
    return found.certificate


def run(settings: dict[str, Any], store: certificate_store.Store, forced: bool, now: int) -> list[str]:
    """Renew if it is time, have the user take it, and return what went wrong."""
    request = certificate.request_of(settings)
    faults = []
    renewed = False
    present = check(store.read(request.name), now)
    if forced or now >= present.due:
        try:
            authority = certificate_store.Authority(settings["ca_url"])
            new = certificate_store.renew(store, request, authority, settings["new_key"], now)
            renewed = True
            say(f"renewed: serial {new.serial:x} follows {present.serial:x}, valid until {when(new.not_after)}")
        except (CertificateError, OSError, KeyError) as error:
            faults.append(f"not renewed: {error}; valid until {when(present.not_after)}, the timer tries again")
    try:
        Service(request, store, say).settle(renewed)
    except (CertificateError, OSError) as error:
        faults.append(str(error))
    return faults


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: certificate_renew.py NAME\n")
        return 2
    name = arguments[0]
    flag = os.path.join(certificate_store.LOCKS, name + ".renew")
    try:
        with open(os.path.join(SETTINGS, name + ".json"), encoding="utf-8") as handle:
            settings = json.load(handle)
        store = certificate_store.Store(group=settings["bundle_group"])
        with certificate_store.lock(name):
            faults = run(settings, store, os.path.exists(flag), int(time.time()))
    except (CertificateError, OSError, ValueError) as error:
        faults = [str(error)]
    # a wish that failed is not kept: the timer renews in time anyway
    if os.path.exists(flag):
        os.unlink(flag)
    for fault in faults:
        sys.stderr.write(f"<3>certificate {name}: {' '.join(fault.split())}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
