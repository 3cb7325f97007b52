"""A boto3 client whose connections go to addresses that were judged, and to no others."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from typing import Any

from engine.errors import RequestError
from engine.net.guard import Resolver, Url, dial


def pin(client: Any, *, private_hosts: Collection[str], timeout: float, resolve: Resolver) -> None:
    """Let `client` connect as `engine.net.guard.dial` does: a name is resolved and judged for each connection anew.

    boto3 would resolve a name once more for itself, so that what was judged before need not be what it reaches. No
    proxy of this machine is used. The client's calls raise RequestError for an address that is not public; what else
    hinders a connection is botocore's own error, which it tries again.
    """
    from botocore import awsrequest
    from botocore.exceptions import HTTPClientError
    from botocore.httpsession import URLLib3Session
    from urllib3.exceptions import NewConnectionError

    def connected(connection: Any) -> socket.socket:
        url = Url("http", connection.host, connection.port, "/")
        try:
            return dial(url, deadline=time.monotonic() + timeout, private_hosts=private_hosts, resolve=resolve)
        except RequestError as error:
            if error.code == "address_private":
                raise
            raise NewConnectionError(connection, error.what) from error

    def pool(base: Any) -> Any:
        plain = type("PinnedConnection", (base.ConnectionCls,), {"_new_conn": connected})
        return type("PinnedPool", (base,), {"ConnectionCls": plain})

    session = URLLib3Session(timeout=(timeout, client.meta.config.read_timeout))
    session._manager.pool_classes_by_scheme = {
        "http": pool(awsrequest.AWSHTTPConnectionPool),
        "https": pool(awsrequest.AWSHTTPSConnectionPool),
    }

    def send(request: Any, **_: Any) -> Any:
        try:
            return session.send(request)
        except HTTPClientError as error:
            cause = error.kwargs.get("error")
            raise (cause if isinstance(cause, RequestError) else error) from None

    # What answers this event takes the place of the client's own session.
    client.meta.events.register("before-send.s3", send)
