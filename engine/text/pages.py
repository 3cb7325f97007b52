"""HTML templates beside the modules that fill them."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template


def read_template(package: str, name: str) -> Template:
    """Return the template in the file `name` of `package`. Every value in it is escaped, unless it is a `Markup`.

    A name that the template uses and nobody gave raises `jinja2.UndefinedError`.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(files(package).joinpath(name).read_text("utf-8"))
