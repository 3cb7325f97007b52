"""A client for endpoints that serve this engine: submit, follow, download. Sync and async, no torch."""

from __future__ import annotations

from engine.client.answers import ClientError, Download, Status
from engine.client.asynchronous import AsyncClient, AsyncJob
from engine.client.media import dub, file, talk
from engine.client.synchronous import Client, Job

__all__ = ["AsyncClient", "AsyncJob", "Client", "ClientError", "Download", "Job", "Status", "dub", "file", "talk"]
