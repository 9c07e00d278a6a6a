"""Keys and their hashes. The file of `--api-keys` holds hashes alone.

A key that `headrace keys add` makes is 256 random bits, so a plain SHA-256 protects it: whoever reads the file would have to try
2^256 keys, and a slow hash or a salt, which passwords need because people choose them, would add nothing but milliseconds to each
request (NIST SP 800-63B, 5.1.2.2: look-up secrets of 112 bits and more need an approved hash, and neither of these). Plain SHA-256
has one more use: `printf %s "$KEY" | sha256sum` makes an entry for a key that exists already. Such a key must be as random; a
word that somebody thought of can be found by trying.
"""

import hashlib
import secrets

PREFIX = "sk-hr-"
_FORM = "sha256:"
_RANDOM_BYTES = 32


def new_key() -> str:
    """A key that nobody has seen: `sk-hr-` and 256 random bits as 43 characters that no shell and no header minds."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(key: bytes) -> bytes:
    """The hash of a key, 32 bytes. Of a key of common length it takes about half a microsecond."""
    return hashlib.sha256(key).digest()


def spelled(digest: bytes) -> str:
    """A hash as the file has it: `sha256:` and 64 hexadecimal digits."""
    return _FORM + digest.hex()


def read_digest(text: str) -> bytes:
    """The hash that `spelled` wrote.

    Raises:
        ValueError: the text is none; the message says what one is, and does not repeat the text, which may be a key.
    """
    digits = text.removeprefix(_FORM)
    if not text.startswith(_FORM) or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"must be `{_FORM}` and 64 hexadecimal digits in lower case, got {len(text)} characters")
    return bytes.fromhex(digits)
