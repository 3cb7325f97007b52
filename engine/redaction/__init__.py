"""Take out of texts what a log, a terminal or a remote caller must not have: keys, media, URLs, paths, hosts."""

from __future__ import annotations

from engine.redaction.callers import scrub as scrub
from engine.redaction.logs import HIDDEN as HIDDEN
from engine.redaction.logs import hide_secrets as hide_secrets
from engine.redaction.logs import named_secret as named_secret
from engine.redaction.logs import named_secrets as named_secrets
from engine.redaction.logs import redact as redact
