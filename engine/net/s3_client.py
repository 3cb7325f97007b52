"""boto3 sessions that share what botocore reads, and clients that connect only to addresses that were checked."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection
from functools import cache
from typing import Any

from engine.errors import RequestError
from engine.net.guard import Resolver, Url, dial


def new_session(region: str | None, **keys: str | None) -> Any:
    """Return a boto3 session of its own for these keys, or for what is configured on this machine.

    Sessions share botocore's descriptions of services, which each would read and parse anew: 0.15 s for each client.
    """
    import boto3
    import botocore.session

    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions())
    return boto3.session.Session(botocore_session=core, region_name=region, **keys)


@cache
def _descriptions() -> Any:
    from botocore.loaders import Loader

    class Descriptions(Loader):  # type: ignore[misc]  # botocore has no types
        """Keeps its folders: each boto3 session would add boto3's own, which describes no client."""

        @property
        def search_paths(self) -> list[str]:
            return list(self._search_paths)

    return Descriptions()


def pin(client: Any, *, private_hosts: Collection[str], timeout: float, resolve: Resolver) -> None:
    """Make `client` connect as `engine.net.guard.dial` does: each connection resolves the name, checks its addresses.

    boto3 would resolve the name again by itself and could reach an address that was not checked. No proxy of this
    machine is used. The client's calls raise RequestError for an address that is not public. Other failures of a
    connection are botocore's own errors, which it retries.
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

    # A handler of this event replaces the client's own session.
    client.meta.events.register("before-send.s3", send)
