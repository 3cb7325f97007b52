"""`multitalk ui`: a studio in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from engine import hookimpl
from engine.assembly.escape import override, override_list
from engine.components import Entrypoint, Service
from engine.config import SECRET, within
from engine.errors import ConfigError, MissingExtra
from engine.files.scratch import scratch
from engine.plugin.register import Register
from engine.serving.hosts import is_loopback
from engine.serving.worker.limits import JobsConfig

if TYPE_CHECKING:
    from engine.serving.studio.backend import Backend
    from engine.serving.studio.web import Serving


@dataclass
class UiConfig(JobsConfig):
    """Opens a studio in the browser: a picture and voices in, a talking video out (docs/studio.md)."""

    name: str = "ui"
    host: str = field(default="127.0.0.1", metadata={"help": "interface to listen on (127.0.0.1)", "word": "ADDRESS"})
    port: int = field(default=7860, metadata={"help": "port; 0: any free port (7860)", "word": "N"} | within(0, 65_535))
    password: str | None = field(
        default="${oc.env:MULTITALK_UI_PASSWORD,null}",
        metadata={"help": "password of the page, required if other machines can reach it", "word": "TEXT"} | SECRET,
    )
    worker: str | None = field(
        default=None,
        metadata={"help": "URL of an endpoint that makes the videos, as http://HOST:8000", "word": "URL"},
    )
    api_key: str | None = field(
        default="${oc.env:RUNPOD_API_KEY,null}", metadata={"help": "API key for --worker", "word": "KEY"} | SECRET
    )
    history: str = field(
        default='${oc.env:XDG_DATA_HOME,"~/.local/share"}/multitalk/studio',
        metadata={"help": "folder of the videos (~/.local/share/multitalk/studio)", "word": "FOLDER"},
    )
    upload_mb: int = field(
        default=100, metadata={"help": "maximum megabytes of an uploaded file (100)", "word": "N"} | within(1, 10_000)
    )
    max_frames: int = field(
        default=15_000, metadata={"help": "maximum frames of a video (15000)", "word": "N"} | within(1, 90_000)
    )
    #: Frames of a job that does not set them; the form always does.
    num_frames: int | str = field(default="auto", metadata={"flag": False})
    #: The form shows the model's own steps and scales.
    defaults_of: str = field(default="model", metadata={"flag": False})


class Ui:
    """Entrypoint of the studio. Prints its address on stdout, everything else on stderr."""

    def __init__(self, config: UiConfig) -> None:
        """Raise ConfigError for an address that other machines can reach without a password, and a wrong worker."""
        self.config = config
        if config.password == "":
            raise ConfigError("an empty password", field="entrypoint.password", hint="give one, or leave it out")
        if config.password is None and not is_loopback(config.host):
            raise ConfigError(
                f"other machines can reach {config.host!r} without a password",
                field="entrypoint.host",
                hint="set MULTITALK_UI_PASSWORD, or give --password TEXT",
            )
        if config.worker is not None:
            _endpoint(config.worker)

    def run(self, service: Service) -> int:
        """Serve until interrupted (Ctrl-C, SIGTERM). Raises ConfigError, and MissingExtra without Gradio."""
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise MissingExtra("entrypoint=ui", "gradio", "ui") from error
        from engine.serving.studio.run import run_studio
        from engine.stages.write import read_provenance

        history = Path(self.config.history).expanduser().absolute()
        with self._backend(service, history) as backend:
            run_studio(backend, history, self._serving(), read_provenance, opened=lambda url: print(url, flush=True))
        return 0

    @contextmanager
    def _backend(self, service: Service, history: Path) -> Iterator[Backend]:
        from engine.serving.studio.backend import LocalBackend, RemoteBackend

        config = self.config
        if config.worker is not None:
            yield RemoteBackend(*_endpoint(config.worker), config.api_key)
            return
        with scratch() as folder:
            own = [override_list("access.folders", [str(history)]), "access.schemes=[path]"]
            own += ["sink=disk", override("sink.folder", str(folder / "made")), "resume.keep=true"]
            own += [override("live.folder", str(folder / "live")), "live.url=null"]
            if not any(word.lstrip("+~").startswith("resume.folder=") for word in service.overrides):
                own.append(override("resume.folder", str(history / "states")))
            shown = [word for word in service.overrides if not word.lstrip("+~").startswith("entrypoint")]
            yield LocalBackend(service.open(own), config.terms(), overrides=shown)

    def _serving(self) -> Serving:
        from engine.serving.studio.web import Serving

        config = self.config
        # With a password a foreign host name is no danger: its pages do not have the cookie.
        hosts = Serving.hosts if config.password is None else None
        return Serving(config.host, config.port, config.password, hosts, config.upload_mb * 1_000_000)


def _endpoint(url: str) -> tuple[str, str]:
    """Return base URL and id of an endpoint's URL, which may be the address that `multitalk endpoint` prints.

    Raises ConfigError.
    """
    url = url.rstrip("/")
    parts = urlsplit(url)
    if not parts.path:
        url += "/v2/local"
    base, _, name = url.rpartition("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(
            "no URL of an endpoint",
            field="entrypoint.worker",
            hint="give one such as http://127.0.0.1:8000 or https://api.runpod.ai/v2/ID",
        )
    return base, name


@hookimpl
def register_entrypoints(register: Register[Entrypoint]) -> None:
    """Offer `multitalk ui`."""
    register(Ui, UiConfig)
