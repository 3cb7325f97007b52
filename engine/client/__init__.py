"""A client for endpoints of this engine: submit a job, follow it, download the video. Sync and async, without torch."""

from __future__ import annotations

from engine.client.answers import ClientError, Download, Status
from engine.client.asynchronous import AsyncClient, AsyncJob
from engine.client.media import file, talk
from engine.client.synchronous import Client, Job

__all__ = ["AsyncClient", "AsyncJob", "Client", "ClientError", "Download", "Job", "Status", "file", "talk"]
