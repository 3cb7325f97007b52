"""The JSON Schema of a job: reads it, applies the worker's limits and checks jobs against it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, RequestError
from engine.serving.jobs.aliases import find_alias
from engine.serving.jobs.document_bounds import MOST_ENTRIES
from engine.text.similar import similar

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

#: Field with a job's own keys; nothing in it is ever quoted.
SECRET = "s3Config"  # noqa: S105 - the name of a field
#: Most errors that are read: a hostile job may have a million, and one is reported.
_MOST = 100


@dataclass(frozen=True)
class JobLimits:
    """The most that a worker allows a job to ask for; a larger default of the schema is lowered to it."""

    #: Frames of a video: 1 or more.
    frames: int = 201
    #: Steps of the sampler: 2 or more.
    steps: int = 100
    #: Seconds of a video that is as long as its voices: 1 or more.
    seconds: float = 600.0
    #: Forward passes of the network, windows x steps x guidance passes: 1 or more.
    forwards: int = 50_000

    def __post_init__(self) -> None:
        """Raise ConfigError for a limit that allows no job."""
        for name, least in (("frames", 1), ("steps", 2), ("forwards", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"a limit of {value!r} {name}", field=f"limits.{name}", hint=f"give a whole number, {least} or more"
                )
        if not 1 <= self.seconds < math.inf:
            raise ConfigError(f"a limit of {self.seconds!r} seconds", field="limits.seconds", hint="give 1 or more")


#: The limits of a worker without options.
DEFAULT_LIMITS = JobLimits()


def job_schema(limits: JobLimits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Return a copy of the schema (draft 2020-12) with the bounds of `limits`."""
    return deepcopy(_bounded(limits))


def input_fields() -> tuple[str, ...]:
    """Return the names of the fields of `input`."""
    return tuple(_source()["$defs"]["input"]["properties"])


def validate(job: Mapping[str, Any], limits: JobLimits = DEFAULT_LIMITS) -> None:
    """Raise RequestError for the first problem of `job`; its message also lists the other fields that are wrong.

    The field is the caller's name, without `input`: `num_frames`, `speakers[0].region.box`.
    """
    # The errors of jsonschema contain the whole job with its keys, so none of them is raised or chained.
    errors = islice(_validator(limits).iter_errors(job), _MOST)
    problems = [problem for error in errors for problem in _translate(error)]
    # A misspelled name explains why another field is missing, so it comes first.
    problems.sort(key=lambda error: error.code != "unknown_field")
    if not problems:
        return
    first = problems[0]
    others = [field for field in dict.fromkeys(error.field for error in problems) if field != first.field]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        first = RequestError(
            f"{first.what} (also wrong: {', '.join(others[:5])}{more})",
            field=first.field,
            hint=first.hint,
            code=first.code,
        )
    raise first


def unknown_field(name: str, known_names: Iterable[str], *, field: str, hint: str = "") -> RequestError:
    """Return the error for an unknown field `name`; without `hint` it suggests the nearest known name."""
    known_names = tuple(known_names)
    alias, advice = find_alias(name, known_names)
    near = [alias] if alias else [] if advice else _nearest(name, known_names)
    hint = hint or advice or (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known_names)}")
    return RequestError(f"there is no field {quote_value(name)}", field=field, hint=hint, code="unknown_field")


def describe_accepted(schema: Mapping[str, Any]) -> str:
    """Describe in a few words what a part of the schema accepts."""
    if "title" in schema:
        return str(schema["title"])
    if "enum" in schema:
        *most, last = (str(choice) for choice in schema["enum"])
        return f"{', '.join(most)} or {last}" if most else last
    kind = _KINDS.get(str(schema.get("type")), "another value")
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']}, at most {schema['maximum']}"
    if "minimum" in schema:
        return f"{kind} from {schema['minimum']} to {schema['maximum']}"
    for shortest, longest, unit in (("minLength", "maxLength", "characters"), ("minItems", "maxItems", "entries")):
        if longest in schema:
            span = f"{schema[shortest]} to" if shortest in schema else "at most"
            return f"{kind} of {span} {schema[longest]} {unit}"
    return kind


def quote_value(value: Any) -> str:
    """Quote a value of the caller, or describe it if it is too long."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a text of {len(value)} characters"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        # Python refuses to print a number of more than 4300 digits.
        return repr(value) if isinstance(value, float) or abs(value) < 10**40 else "a number of more than 40 digits"
    return "a list" if isinstance(value, list | tuple) else "an object"


_KINDS = {
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "an object",
}


@cache
def _source() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(files("engine.serving.jobs").joinpath("schema.json").read_text("utf-8"))
    return schema


@cache
def _bounded(limits: JobLimits) -> dict[str, Any]:
    schema = deepcopy(_source())
    fields = schema["$defs"]["input"]["properties"]
    frames, steps = fields["num_frames"], fields["sampling_steps"]
    frames["else"]["maximum"], steps["maximum"] = limits.frames, limits.steps
    frames["title"] = frames["else"]["title"] = f"a whole number from 1 to {limits.frames}, or 'auto'"
    for field, most in ((frames, limits.frames), (steps, limits.steps)):
        field["default"] = min(field["default"], most)
    return schema


@cache
def _validator(limits: JobLimits) -> Validator:
    # Imported only by processes that take jobs.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON has neither infinity nor NaN, but Python reads both, and a NaN passes every bound.
    finite = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer})
    validator: Validator = extend(Draft202012Validator, _rules(), type_checker=finite)(_bounded(limits))
    return validator


def _rules() -> dict[str, Any]:
    """Return the keywords of this schema, at a cost that does not grow with the size of the values.

    jsonschema's own keywords write the value, which may have megabytes, into a message that nobody reads: `_translate`
    writes its own messages. The length of a list is checked before its items, that of a text before its pattern.
    """
    from jsonschema.exceptions import ValidationError

    def rule(broken: Callable[[Validator, Any, Any, Mapping[str, Any]], bool]) -> Any:
        def check(validator: Validator, bound: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
            if broken(validator, bound, value, schema):
                yield ValidationError("")

        return check

    def of(kind: str, broken: Callable[[Any, Any], bool]) -> Any:
        return rule(lambda validator, bound, value, _: validator.is_type(value, kind) and broken(bound, value))

    def items(validator: Validator, bound: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
        if validator.is_type(value, "array") and len(value) <= schema.get("maxItems", MOST_ENTRIES):
            for index, item in enumerate(value):
                yield from validator.descend(item, bound, path=index)

    def pattern(_: Validator, bound: Any, value: Any, schema: Mapping[str, Any]) -> bool:
        if not isinstance(value, str) or len(value) > schema.get("maxLength", len(value)):
            return False
        # `search` would try an anchored pattern at each position of a long text.
        match = re.match(bound, value) if bound.startswith("^") else re.search(bound, value)
        return match is None

    def any_of(validator: Validator, bound: Any, value: Any, _: Any) -> Iterator[ValidationError]:
        why: list[ValidationError] = []
        for index, part in enumerate(bound):
            wrong = list(islice(validator.descend(value, part, schema_path=index), _MOST))
            if not wrong:
                return
            why += wrong
        yield ValidationError("", context=why)

    def none_of(validator: Validator, bound: Any, value: Any, _: Any) -> bool:
        return bool(validator.evolve(schema=bound).is_valid(value))

    def same(one: Any, other: Any) -> bool:
        # True is 1 in Python, and not in JSON.
        return type(one) is type(other) and bool(one == other)

    return {
        "type": rule(
            lambda validator, bound, value, _: (
                not any(validator.is_type(value, kind) for kind in ([bound] if isinstance(bound, str) else bound))
            )
        ),
        "enum": rule(lambda _, bound, value, __: not any(same(value, choice) for choice in bound)),
        "const": rule(lambda _, bound, value, __: not same(value, bound)),
        "pattern": rule(pattern),
        "items": items,
        "not": rule(none_of),
        "anyOf": any_of,
        "required": rule(
            lambda validator, bound, value, _: (
                validator.is_type(value, "object") and any(name not in value for name in bound)
            )
        ),
        "dependentRequired": rule(
            lambda validator, bound, value, _: (
                validator.is_type(value, "object")
                and any(name in value and other not in value for name, others in bound.items() for other in others)
            )
        ),
        "additionalProperties": rule(
            lambda validator, _, value, schema: (
                validator.is_type(value, "object") and any(name not in schema["properties"] for name in value)
            )
        ),
        "minLength": of("string", lambda least, value: len(value) < least),
        "maxLength": of("string", lambda most, value: len(value) > most),
        "minItems": of("array", lambda least, value: len(value) < least),
        "maxItems": of("array", lambda most, value: len(value) > most),
        "minProperties": of("object", lambda least, value: len(value) < least),
        "maxProperties": of("object", lambda most, value: len(value) > most),
        "minimum": of("number", lambda least, value: value < least),
        "exclusiveMinimum": of("number", lambda least, value: value <= least),
        "maximum": of("number", lambda most, value: value > most),
    }


def _is_number(_: Any, value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_integer(checker: Any, value: object) -> bool:
    return _is_number(checker, value) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


# --- jsonschema's errors as RequestError ------------------------------------------------------------------------------


def _translate(error: ValidationError) -> Iterator[RequestError]:
    path = list(error.absolute_path)
    keyword, schema, value = str(error.validator), error.schema, error.instance
    field = _field_path(path)
    accepted = describe_accepted(schema)
    hint = f"give {accepted}"
    quoted = "the value" if path[:1] == [SECRET] else quote_value(value)
    match keyword:
        case "additionalProperties":
            known = tuple(schema["properties"])
            for name in islice((name for name in value if name not in known), _MOST):
                yield _unknown(str(name), known, path)
        case "required":
            for name in error.validator_value:
                if name not in value:
                    yield _missing(name, path)
        case "dependentRequired":
            for name, needed in error.validator_value.items():
                for other in needed:
                    if name in value and other not in value:
                        yield RequestError(
                            f"there is no {other} for it",
                            field=_field_path([*path, name]),
                            hint=f"give {other} too"
                            + ("; a silent person needs an entry in speakers" if other.startswith("audio") else ""),
                            code="missing_field",
                        )
        case "not" | "const":
            yield RequestError(schema["description"], field=field, hint=hint, code="conflict")
        case "type":
            what = f"{quoted} is not {_kind(schema)}"
            if path[:1] != [SECRET] and isinstance(value, str) and _is_json_of(value, str(schema["type"])):
                is_json = value.lstrip()[:1] in ("{", "[")
                what = f"{'a string that holds JSON' if is_json else quoted} is not {_kind(schema)}"
                hint += ": the value itself, without quotes around it"
            yield RequestError(what, field=field, hint=hint, code="wrong_type")
        case "enum":
            text = value if isinstance(value, str) else quote_value(value)
            near = similar(text, [str(choice) for choice in error.validator_value])
            hint = f"did you mean {near[0]}? Choose {accepted}" if near else f"choose {accepted}"
            yield RequestError(f"{quoted} is unknown", field=field, hint=hint, code="unknown_choice")
        case "pattern" | "minProperties" | "maxProperties":
            yield RequestError(f"{quoted} is not valid", field=field, hint=hint, code="bad_value")
        case _:
            bound = error.validator_value
            empty = keyword in ("minLength", "minItems") and bound == 1
            what = f"{quoted} is {'empty' if empty else _BOUNDS[keyword].format(bound)}"
            yield RequestError(what, field=field, hint=hint, code="out_of_range")


_BOUNDS = {
    "minimum": "less than {}",
    "exclusiveMinimum": "not above {}",
    "maximum": "more than {}",
    "minLength": "shorter than {} characters",
    "maxLength": "longer than {} characters",
    "minItems": "shorter than {} entries",
    "maxItems": "longer than {} entries",
}


def _unknown(name: str, known: tuple[str, ...], path: list[str | int]) -> RequestError:
    if path[:1] == [SECRET] and not _nearest(name, known) and not find_alias(name, known)[0]:
        # The caller may have pasted a key in the place of a name.
        return RequestError(
            "there is an unknown field", field=SECRET, hint=f"known: {', '.join(known)}", code="unknown_field"
        )
    short = name if len(name) <= 40 else f"{name[:40]}..."
    hint = f"{SECRET} belongs beside input, not in it" if path == ["input"] and _same(name, SECRET) else ""
    if path == ["input"] and name == "input":
        hint = 'input is nested in input: put its fields into the outer one, {"input": {"prompt": ...}}'
    return unknown_field(short, known, field=_field_path([*path, short]), hint=hint)


def _missing(name: str, path: list[str | int]) -> RequestError:
    known = {"input": {"type": "object"}}
    for part in _source()["$defs"].values():
        known |= part.get("properties", {})
    about = known[name]
    if "$ref" in about:
        about = {**_source()["$defs"][str(about["$ref"]).rpartition("/")[2]], **about}
    other = {"audio_1": ", or speakers", "audio": ", or silence: true"}.get(name, "")
    hint = f"give {describe_accepted(about)}{other}"
    return RequestError("it is missing", field=_field_path([*path, name]), hint=hint, code="missing_field")


def _kind(schema: Mapping[str, Any]) -> str:
    return _KINDS[str(schema["type"])]


def _is_json_of(text: str, kind: str) -> bool:
    """Return whether `text` is the JSON of a value of type `kind`."""
    text = text.strip()
    first = {"object": "{", "array": "["}.get(kind)
    if first is not None:
        # It may be megabytes long, and truncated.
        return text.startswith(first)
    try:
        value = json.loads(text) if len(text) <= 40 else None
    except ValueError:
        return False
    if kind == "boolean":
        return isinstance(value, bool)
    return kind in ("integer", "number") and isinstance(value, int | float) and not isinstance(value, bool)


def _field_path(path: list[str | int]) -> str:
    steps = path[1:] if path[:1] == ["input"] and len(path) > 1 else path
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    plain = {_plain(other): other for other in known}
    name = name[:64]
    near = similar(_plain(name), plain, most=2, cutoff=0.7)
    # `steps` is not similar to `sampling_steps` by its characters, but clearly means it.
    near = near or [other for other in plain if len(name) >= 4 and _plain(name) in other]
    return [plain[other] for other in near[:3]]


def _same(one: str, other: str) -> bool:
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return name[:64].lower().replace("_", "").replace("-", "")
