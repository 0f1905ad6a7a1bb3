"""Fingerprints against those that GnuPG gives for the same keys, which were made for this test."""

from __future__ import annotations

import base64

import pytest
from ansible_collections.moat.inference.plugins.module_utils import openpgp

RSA = base64.b64decode(
    "mQENBGsJvmoBCAC3gR98uddSVhwITZgWQROB2hF5VxkCxL9Haak5rslPtLPvS5GSDjetOUFQbxGsPduXYyjd141yKsEhkVhc34BinxPyHzxDkMw5D16Q2jXc"
    "jJo0/ngnied+2Gf728vLyTvLuEvmQoVZLLF1UCKdxSa0BxTPnOCjFAPjDMfNPOZPoJYXzF0z1On5CTyEPp+PGwLQ6kgYlCeipBzgY2rGK2i9MeM19m/jQPUA"
    "u1hIxzJ9xIJnO0L1liKTMLMdUcsJuyECfGEtltrCqI4d+B0v6yRlzFU/r5vYzp9LERFurGT6zKZAdj7G751rMxiF9oq19b9lShpPkZCe25IZjB2Qlb27ABEB"
    "AAG0Hm1vYXQgbGFiIG9uZSA8b25lQGxhYi5pbnZhbGlkPokBTgQTAQoAOBYhBLT1niqvMm5Yk9Q4c4Qwcg1q6Z+pBQJrCb5qAhsDBQsJCAcCBhUKCQgLAgQW"
    "AgMBAh4BAheAAAoJEIQwcg1q6Z+p18EH/j8Pk0XRrZenyfZvjp4ikRDyWDdCjkyNi3tJxw08Rqm9mTVwC6dBpSiQxu3CEpldL5G28LtChxJsjyIq7/+DNgNH"
    "iQB+tBKmc9VcgVoyIS0Tk6NR+YG4bKTUXO6CFkuJGfxuTab3vedeuDgeomrH3OAdq0Lz7zBxBZLPYtirYCbVbafDc5uCi3KylX5Crvzemri8P1LWmEXu7hIR"
    "UweCt31T3RgX2Oue0nKMxOoy/kiFvjiz2AmXMYuVP/wm9nWwA7P802Rjq2T/EsCXg2/PF2o+rLadfPLW1RkCIX++JXk/74ALmsSWQYFbJs5xtIASPpOOx2nD"
    "z12/JHOWTJ5k+SY="
)
RSA_FINGERPRINT = "B4F59E2AAF326E5893D438738430720D6AE99FA9"
CURVE = b"""-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawm+ahYJKwYBBAHaRw8BAQdAG5fcGiT2hgqpOwA92/XzL9l9F90Alrs2jzPx
9BpJjqi0Hm1vYXQgbGFiIHR3byA8dHdvQGxhYi5pbnZhbGlkPoiQBBMWCAA4FiEE
qhUt9X1yMYZOQmit7sFQA3qgiKgFAmsJvmoCGwMFCwkIBwIGFQoJCAsCBBYCAwEC
HgECF4AACgkQ7sFQA3qgiKj/4AD/UiM4yZFAVony9XXjjzzT6mqSCMlVGXWL+HJB
MAoZ7msA/1HgTaUJ+P1BmeTvoklTyE/NP7NtEGuajriCCzasx7kNuDgEawm+ahIK
KwYBBAGXVQEFAQEHQD/tYA4KxZ6qho8LYwummlvFIIhjapCu/zY46MxV8jFKAwEI
B4h4BBgWCAAgFiEEqhUt9X1yMYZOQmit7sFQA3qgiKgFAmsJvmoCGwwACgkQ7sFQ
A3qgiKgYUgEAn7V+kK1Iud2niAJsnLgcBAKu5Yi/lt2caDxjc3pBVRYA/2a7QEXB
6TUeRHE/UEuhFNV+9qu3eEjGBYJZtfTttRgD
=0+9r
-----END PGP PUBLIC KEY BLOCK-----
"""
CURVE_FINGERPRINT = "AA152DF57D7231864E4268ADEEC150037AA088A8"


def test_the_fingerprint_is_gnupgs() -> None:
    assert [key.fingerprint for key in openpgp.keys(RSA)] == [RSA_FINGERPRINT]
    assert [key.fingerprint for key in openpgp.keys(CURVE)] == [CURVE_FINGERPRINT]


def test_armour_with_headers_text_around_it_and_other_line_ends() -> None:
    text = CURVE.replace(b"BLOCK-----\n\n", b"BLOCK-----\nVersion: GnuPG v2\nComment: x\n\n", 1)
    for variant in (text, b"a key\n" + text + b"more\n", text.replace(b"\n", b"\r\n")):
        assert [key.fingerprint for key in openpgp.keys(variant)] == [CURVE_FINGERPRINT]


def test_of_several_keys_only_the_named_one_is_taken() -> None:
    both = RSA + openpgp.dearmour(CURVE)
    assert [key.fingerprint for key in openpgp.keys(both)] == [RSA_FINGERPRINT, CURVE_FINGERPRINT]
    spaced = " ".join(CURVE_FINGERPRINT[i : i + 4] for i in range(0, 40, 4)).lower()
    taken = openpgp.select(both, spaced)
    assert taken == openpgp.dearmour(CURVE)
    assert [key.fingerprint for key in openpgp.keys(taken)] == [CURVE_FINGERPRINT]
    with pytest.raises(openpgp.BadKey, match=f"{RSA_FINGERPRINT}, {CURVE_FINGERPRINT}"):
        openpgp.select(both, "0" * 40)


def test_one_changed_bit_is_another_key() -> None:
    changed = bytearray(RSA)
    changed[100] ^= 1
    assert openpgp.keys(bytes(changed))[0].fingerprint != RSA_FINGERPRINT


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no OpenPGP public key"),
        (b"<html>404</html>", "no OpenPGP data"),
        (RSA[:200], "cut off"),
        (RSA[:2], "cut off"),
        (RSA[3:], "no OpenPGP data"),
        (CURVE.replace(b"mDME", b"mDMF"), "checksum"),
        (CURVE.replace(b"mDME", b"m*ME"), "damaged"),
        (CURVE[:200], "cut off"),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nxxxx\n", "secret key"),
        (b"\x95\x00\x02\x04\x00", "secret key"),
        (b"\x99\x00\x01\x03", "version is 3"),
        (b"\x88\x01\x00", "no place"),
        (b"\xcb\x01\x00", "no place"),
        (b"\xc6\xe1\x00", "partial length"),
        (b"\x9b\x00", "indeterminate"),
    ],
)
def test_what_is_no_key_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(openpgp.BadKey, match=words):
        openpgp.keys(content)


@pytest.mark.parametrize("length", [100, 1000, 100000])
def test_lengths_of_packets_in_every_form(length: int) -> None:
    body = b"\x04" + b"x" * length
    new = bytes([length + 1]) if length < 191 else b"\xff" + len(body).to_bytes(4, "big")
    if 191 <= length < 8000:
        new = bytes([((len(body) - 192) >> 8) + 192, (len(body) - 192) & 0xFF])
    for head in (b"\xc6" + new, b"\x9a" + len(body).to_bytes(4, "big")):
        assert [(tag, found) for tag, found, _begin, _end in openpgp.packets(head + body)] == [(6, body)]
