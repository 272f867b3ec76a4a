"""Whether the hub of models and data sets can be reached."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request


def hub_answers() -> bool:
    """Whether a download can be tried at all: the hub's client goes on retrying for half a minute where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    address = urllib.parse.urlparse(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3.0):
            return True
    except OSError:
        return False
