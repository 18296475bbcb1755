"""What must not be shown: values of secret environment variables, credentials in addresses, signatures, keys."""

from __future__ import annotations

import logging
import os
import re
from typing import Final
from urllib.parse import parse_qsl

_MASK: Final = "***"
_SHORTEST: Final = 8  # a shorter value would mask ordinary words
_SECRET: Final = r"secret|token|passw(?:or)?d|credential|signature|private_?key|access_?key|api_?key|account_?key"
_VARIABLE: Final = re.compile(_SECRET, re.IGNORECASE)
_NO_SECRET: Final = re.compile(r"(?:_file|_path|_uri|_url|_expiration|_mode)$", re.IGNORECASE)
_PARAMETER: Final = re.compile(rf"(?:{_SECRET}|(?:^|[-_])(?:sig|key|pwd|auth)$)", re.IGNORECASE)

_IN_TEXT: Final = (
    (re.compile(r"(?<!\babfs)(?<!\babfss)(://)[^\s/?#@'\"]+@"), rf"\1{_MASK}@"),
    (re.compile(rf"([?&;][\w.-]*(?:{_SECRET}|\bsig\b)[\w.-]*=)[^\s&;#'\"]+", re.IGNORECASE), rf"\1{_MASK}"),
    (re.compile(r"\b((?:Bearer|Basic)\s+)[\w.~+/=-]{8,}"), rf"\1{_MASK}"),
    (re.compile(r"\b((?:Signature|Credential)=)[^\s,&]+"), rf"\1{_MASK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), _MASK),
)


def masked(text: str) -> str:
    """The text without anything secret in it; the same again for what is masked already."""
    for value in _values():
        text = text.replace(value, _MASK)
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def has_credentials(uri: str) -> bool:
    """Whether an address carries a password, or a query with a secret or a signature."""
    _, mark, rest = uri.partition("://")
    host, _, _ = rest.partition("/")
    names = [name for name, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True)]
    return bool(mark) and (":" in host.rpartition("@")[0] or any(map(_PARAMETER.search, names)))


class MaskingFormatter(logging.Formatter):
    """Log lines and tracebacks without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As of any formatter, masked."""
        return masked(super().format(record))


def _values() -> list[str]:
    """Of the environment's secret variables, the longest first, as one may be part of another."""
    secret = (value for name, value in os.environ.items() if _VARIABLE.search(name) and not _NO_SECRET.search(name))
    return sorted((value for value in secret if len(value) >= _SHORTEST), key=len, reverse=True)
