"""Which variables and parameters are secrets, judged by their names, and where a value hides one (a URL's userinfo).

Standard library only and without regular expressions: the launcher's child asks too, where nothing may be imported.
Names and values are bytes, as the kernel has them. docs/redaction.md has the list for people.
"""

from __future__ import annotations

#: Anywhere in a name, in any case.
ANYWHERE = (b"PASSWORD", b"PASSWD", b"PASSPHRASE", b"PASSCODE", b"SECRET", b"TOKEN", b"CREDENTIAL", b"CONNECTIONSTRING")
#: At the end of a word of a name; words are what stands between "_", "-", "." and changes of case.
ENDINGS = (b"KEY", b"KEYS", b"PWD", b"PASS", b"AUTH")
#: A whole word of a name.
WORDS = frozenset(
    (b"AUTHORIZATION", b"BEARER", b"COOKIE", b"CRED", b"CREDS", b"DSN", b"JWT", b"OTP", b"PAT", b"PIN", b"PW", b"SALT")
)
WHOLE = frozenset((b"DATA_SOURCE_NAME",))
#: Directories of a shell.
NEVER = frozenset((b"PWD", b"OLDPWD"))
#: Names that end so and whose value begins with "/" tell a place, not the secret that lies there.
PLACES = frozenset((b"FILE", b"PATH", b"DIR", b"DIRECTORY"))
#: A URL's userinfo without a password is a token from this length on, and a user's name below it.
TOKEN_BYTES = 16
#: `password=...` in a connection string.
ASSIGNMENTS = (b"password=", b"passwd=", b"pwd=")

_BETWEEN = bytes(byte if 0x30 <= byte <= 0x39 or 0x41 <= byte <= 0x5A else 0x20 for byte in range(256))
_END_OF_AUTHORITY = b"/?#\"'<>\\`|{} \t\r\n"
_END_OF_ASSIGNMENT = b";&,\"' \t\r\n"


def looks_secret(name: bytes, value: bytes = b"") -> bool:
    """Whether what has this name is a secret by the name alone; `value` tells a path to a file from a secret."""
    upper = name.upper()
    if upper in NEVER:
        return False
    words = _words(name)
    if words and words[-1] in PLACES and value.startswith(b"/"):
        return False
    return (
        upper in WHOLE
        or any(part in upper for part in ANYWHERE)
        or any(word in WORDS or word.endswith(ENDINGS) for word in words)
    )


def holds_secret(name: bytes, value: bytes) -> bool:
    """Whether a variable is a secret, or has one inside its value."""
    return looks_secret(name, value) or bool(inside(value))


def inside(value: bytes) -> list[bytes]:
    """Secrets that stand in the middle of a text: passwords of URLs, and what `password=` assigns."""
    return [*_userinfo(value), *_assigned(value)]


def secrets_of(name: bytes, value: bytes) -> list[bytes]:
    """What must not be seen of a variable: the whole value if its name says so, and what is inside."""
    found = inside(value)
    if looks_secret(name, value):
        found.append(value)
    return found


def _words(name: bytes) -> list[bytes]:
    """The words of a name, in upper case: `dbPassword`, `DB_PASSWORD` and `db-password` have the same."""
    if name.isupper():  # as nearly all are, and the child has no time to lose
        return name.translate(_BETWEEN).split()
    words, word, before = [], bytearray(), 0
    for byte in name:
        lower, upper, digit = 0x61 <= byte <= 0x7A, 0x41 <= byte <= 0x5A, 0x30 <= byte <= 0x39
        if not (lower or upper or digit) or (upper and before == 1):
            words.append(bytes(word).upper())
            word.clear()
        if lower or upper or digit:
            word.append(byte)
        before = 1 if lower else 0
    words.append(bytes(word).upper())
    return [each for each in words if each]


def _userinfo(value: bytes) -> list[bytes]:
    found = []
    at = value.find(b"://")
    while at >= 0:
        begin = at + 3
        authority = value[begin : _end(value, begin, _END_OF_AUTHORITY)]
        userinfo, there, _ = authority.rpartition(b"@")
        if there:
            user, colon, password = userinfo.partition(b":")
            secret = password if colon else user if len(user) >= TOKEN_BYTES else b""
            if secret:
                found.append(secret)
        at = value.find(b"://", begin)
    return found


def _assigned(value: bytes) -> list[bytes]:
    found: list[bytes] = []
    if b"=" not in value:
        return found
    lower = value.lower()
    for assignment in ASSIGNMENTS:
        at = lower.find(assignment)
        while at >= 0:
            begin = at + len(assignment)
            quote = value[begin : begin + 1]
            if quote in (b"'", b'"'):
                begin += 1
                stop = value.find(quote, begin)
                secret = value[begin : stop if stop >= 0 else len(value)]
            else:
                secret = value[begin : _end(value, begin, _END_OF_ASSIGNMENT)]
            if secret:
                found.append(secret)
            at = lower.find(assignment, begin + len(secret))
    return found


def _end(value: bytes, begin: int, ends: bytes) -> int:
    """Where the first byte of `ends` stands from `begin` on; the end of the value if none does."""
    for at in range(begin, len(value)):
        if value[at] in ends:
            return at
    return len(value)
