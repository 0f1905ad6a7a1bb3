# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fingerprints of OpenPGP keys (RFC 4880), so that a key is known before any program trusts it, and nothing but Python is needed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

PUBLIC_KEY, SECRET_KEY, PUBLIC_SUBKEY, USER_ID, USER_ATTRIBUTE, SIGNATURE, MARKER, TRUST = 6, 5, 14, 13, 17, 2, 10, 12
PARTS = (PUBLIC_SUBKEY, USER_ID, USER_ATTRIBUTE, SIGNATURE, TRUST)
BEGIN, SECRET = b"-----BEGIN PGP PUBLIC KEY BLOCK-----", b"-----BEGIN PGP PRIVATE KEY BLOCK-----"
ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?P<body>.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
CRC_INIT, CRC_POLYNOMIAL = 0xB704CE, 0x1864CFB  # RFC 4880, 6.1
FINGERPRINT = re.compile(r"[0-9A-F]{40}")


class BadKey(ValueError):
    """What was given is no OpenPGP public key; says why."""


@dataclass(frozen=True)
class Key:
    """A primary key with everything that belongs to it. fingerprint: 40 hex digits in capitals; data: its packets as they were."""

    fingerprint: str
    data: bytes


def normal(fingerprint: str) -> str:
    """A fingerprint as it is compared: without spaces, in capitals."""
    return re.sub(r"\s", "", fingerprint).upper()


def keys(content: bytes) -> list[Key]:
    """Return the public keys of a key file, ASCII-armoured or binary; raise BadKey when it is something else."""
    if SECRET in content:
        raise BadKey("it has a secret key in it; export the public key alone")
    data = dearmour(content) if BEGIN in content else content
    found: list[Key] = []
    fingerprint, start = "", 0
    for tag, body, begin, _end in packets(data):
        if tag == SECRET_KEY:
            raise BadKey("it has a secret key in it; export the public key alone")
        if tag == PUBLIC_KEY:
            if fingerprint:
                found.append(Key(fingerprint, data[start:begin]))
            fingerprint, start = fingerprint_of(body), begin
        elif tag not in (*PARTS, MARKER) or (tag in PARTS and not fingerprint):
            raise BadKey(f"a packet with tag {tag} has no place in a public key")
    if not fingerprint:
        raise BadKey("it has no OpenPGP public key in it")
    return [*found, Key(fingerprint, data[start:])]


def select(content: bytes, fingerprint: str) -> bytes:
    """Return the packets of the one key that has the fingerprint; raise BadKey, which names those that are there."""
    found = keys(content)
    for key in found:
        if key.fingerprint == normal(fingerprint):
            return key.data
    raise BadKey("its fingerprint is {}".format(", ".join(key.fingerprint for key in found)))


def fingerprint_of(body: bytes) -> str:
    """SHA-1 over 0x99, the length in two octets and the packet's body (RFC 4880, 12.2)."""
    if not body or body[0] != 4:
        raise BadKey("its version is {}, not 4".format(body[0] if body else "missing"))
    # SHA-1 is what the format prescribes
    digest = hashlib.new("sha1", b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False)
    return digest.hexdigest().upper()


def dearmour(content: bytes) -> bytes:
    """Return the binary of every armoured block, one after the other (RFC 4880, 6.2); raise BadKey on a damaged one."""
    found = b""
    for block in ARMOUR.finditer(content):
        lines = [line.strip() for line in block["body"].splitlines()]
        if b"" in lines:
            head = lines.index(b"")
            if all(b":" in line for line in lines[:head]):
                lines = lines[head + 1 :]
        lines = [line for line in lines if line]
        check = lines.pop()[1:] if lines and lines[-1].startswith(b"=") and len(lines[-1]) == 5 else b""
        try:
            data = base64.b64decode(b"".join(lines), validate=True)
            expected = base64.b64decode(check, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadKey("its text is damaged") from error
        if check and crc24(data).to_bytes(3, "big") != expected:
            raise BadKey("its checksum is wrong")
        found += data
    if not found:
        raise BadKey("its text is cut off")
    return found


def crc24(data: bytes) -> int:
    """The checksum of an armoured block."""
    crc = CRC_INIT
    for octet in data:
        crc ^= octet << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= CRC_POLYNOMIAL
    return crc & 0xFFFFFF


def packets(data: bytes) -> list[tuple[int, bytes, int, int]]:
    """Return tag, body, begin and end of every packet (RFC 4880, 4.2); raise BadKey when the data is no sequence of them."""
    found, position = [], 0
    while position < len(data):
        begin, octet = position, data[position]
        if not octet & 0x80:
            raise BadKey("it is no OpenPGP data")
        if octet & 0x40:
            tag, (length, position) = octet & 0x3F, _new_length(data, position + 1)
        else:
            tag, (length, position) = (octet >> 2) & 0x0F, _old_length(data, position + 1, octet & 3)
        if position + length > len(data):
            raise BadKey("it is cut off")
        found.append((tag, data[position : position + length], begin, position + length))
        position += length
    return found


def _take(data: bytes, position: int, count: int) -> int:
    if position + count > len(data):
        raise BadKey("it is cut off")
    return int.from_bytes(data[position : position + count], "big")


def _new_length(data: bytes, position: int) -> tuple[int, int]:
    first = _take(data, position, 1)
    if first < 192:
        return first, position + 1
    if first < 224:
        return ((first - 192) << 8) + _take(data, position + 1, 1) + 192, position + 2
    if first == 255:
        return _take(data, position + 1, 4), position + 5
    raise BadKey("a packet of a key has no partial length")


def _old_length(data: bytes, position: int, kind: int) -> tuple[int, int]:
    if kind == 3:
        raise BadKey("a packet of a key has no indeterminate length")
    count = 1 << kind
    return _take(data, position, count), position + count
