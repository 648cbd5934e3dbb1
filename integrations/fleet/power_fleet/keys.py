"""Keys for NATS: the holder of the secret half signs; the servers know the public half.

They are NATS's own "nkeys" (Ed25519). A key file holds the secret half in one line, after comments
that begin with `#`. The package of that name is imported by what needs it: who has a password, or
no login at all, does without.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import logging
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from power_manager import InvalidValue, StorageError, open_secret

INBOX_LETTERS = 16  # of the public key: 80 bits, so that no two of a fleet have the same inbox
PUBLIC_BYTES = 35  # the kind, 32 of the key, two of a checksum
USER_BYTE = 20 << 3  # the kind: it makes the text begin with U
_log = logging.getLogger("power_fleet")
_HEAD = "# Keep it secret: whoever has this line can send as {name}.\n"


@dataclass(frozen=True)
class Key:
    """A pair of keys.

    `seed` is the secret half, as text that begins with SU; `public` begins with U.
    """

    seed: str = field(repr=False)
    public: str

    @property
    def inbox_prefix(self) -> str:
        """The subject below which answers to the holder of this key come."""
        return inbox_prefix_of(self.public)

    def sign(self, nonce: str) -> str:
        """The proof for a server that has sent this nonce."""
        import nkeys

        pair = nkeys.from_seed(bytearray(self.seed, "ascii"))
        return base64.b64encode(pair.sign(nonce.encode())).decode()


def inbox_prefix_of(public: str) -> str:
    """The subject below which answers to the holder of a public key come.

    No one else may listen there.

    >>> inbox_prefix_of("UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4")
    '_INBOX.DXU4RCSJNZOIQHZN'
    """
    return f"_INBOX.{public[1 : 1 + INBOX_LETTERS]}"


def make_key() -> Key:
    """A new pair, by the system's random numbers."""
    import nkeys

    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return _key_of(seed.decode())


def read_key(path: Path) -> Key:
    """The pair whose secret half a file holds.

    Raises StorageError for a file that has none or that everybody can write, and OSError.
    """
    import nkeys

    lines: list[str] = []
    with contextlib.suppress(UnicodeDecodeError), open_secret(path, warn_once) as file:
        lines = file.read().splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if len(found) != 1 or not re.fullmatch("SU[A-Z2-7]{56}", found[0]):
        raise StorageError(path, "expected one line with a key that begins with SU")
    seed = found[0]
    prefix, raw = nkeys.decode_seed(bytearray(seed, "ascii"))
    if nkeys.encode_seed(bytes(raw), prefix).decode() != seed:
        raise StorageError(path, "a letter of the key is wrong: copy the file again")
    return _key_of(seed)


@functools.lru_cache(maxsize=1000)
def warn_once(text: str) -> None:
    """Say it, but not again at each connection."""
    _log.warning("%s", text)


def write_key(path: Path, key: Key, name: str) -> None:
    """Write the secret half to a new file that only its owner may read.

    Raises StorageError where there is one.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise StorageError(
            path, "there is a key already, which may be in use: move it away, or name another file"
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{_HEAD.format(name=ascii(name))}{key.seed}\n")
        file.flush()
        os.fsync(file.fileno())


def check_public(text: str) -> str:
    """Return a public key of a user. Raises InvalidValue."""
    try:
        raw = base64.b32decode(text)
    except ValueError:
        raw = b""
    checksum = binascii.crc_hqx(raw[:-2], 0)
    is_whole = len(raw) == PUBLIC_BYTES and checksum == int.from_bytes(raw[-2:], "little")
    if not is_whole or raw[0] != USER_BYTE:
        raise InvalidValue(f"expected a public key: 56 letters that begin with U, got {text!r}")
    return text


def _key_of(seed: str) -> Key:
    import nkeys

    pair = nkeys.from_seed(bytearray(seed, "ascii"))
    return Key(seed, pair.public_key.decode())
