"""Passwords for broker users: made here, and kept by the broker only as a hash. No broker's tool is needed.

They are 256 random bits, so no number of rounds makes them harder to guess, and each round is paid by the broker at
every reconnect of every agent: the rounds are about the least that each broker is used to.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import importlib
import secrets

from agent.contract.errors import InvalidSettings

#: What mosquitto_passwd of 2.0 uses (its PW_DEFAULT_ITERATIONS).
PBKDF2_ROUNDS = 101
_SALT_BYTES = 12
_HASH_BYTES = 64
#: bcrypt's least that Go accepts is 4; written with two digits.
BCRYPT_COST = 5
_BCRYPT_ALPHABET = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def new_password() -> str:
    """256 random bits in URL-safe characters."""
    return secrets.token_urlsafe(32)


def mosquitto_hash(password: str, salt: bytes | None = None) -> str:
    """`$7$rounds$salt$hash` as mosquitto 2.0's password file has it: PBKDF2 with SHA-512, base64."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ROUNDS, _HASH_BYTES)
    return f"$7${PBKDF2_ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def bcrypt_hash(password: str) -> str:
    """`$2a$...` as NATS takes it: by the package bcrypt where it is installed, else by the system's libcrypt.

    Raises:
        InvalidSettings: there is neither; says what to install.
    """
    salt = "".join(chr(secrets.choice(_BCRYPT_ALPHABET)) for _ in range(22))
    setting = f"$2a${BCRYPT_COST:02d}${salt}".encode()
    for hashed in (_by_package(password.encode(), setting), _by_system(password.encode(), setting)):
        if hashed.startswith(b"$2a$") and len(hashed) == 60:
            return hashed.decode("ascii")
    raise InvalidSettings(
        "NATS wants passwords as bcrypt, and this system has none: pip install bcrypt, or run this where "
        "libcrypt.so.1 is"
    )


def _by_package(password: bytes, setting: bytes) -> bytes:
    try:
        return bytes(importlib.import_module("bcrypt").hashpw(password, setting))
    except ImportError:
        return b""


def _by_system(password: bytes, setting: bytes) -> bytes:
    """crypt(3) of libxcrypt, which every Debian and the Python images have; Python's own `crypt` left with 3.13."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libcrypt.so.1")
        library.crypt.restype = ctypes.c_char_p
        return library.crypt(password, setting) or b""
    return b""
