"""Configuration: a TOML file and `key=value` overrides become one frozen, validated model. Unknown keys are errors.

Each component defines its `Config` class next to it; nothing else is read, so a typo can never pass silently and train
for a day.
"""

import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiolm.errors import InputError


class Config(BaseModel):
    """Base of every configuration: frozen, no extra keys, compared by value. Numbers given for strings become strings.

    NaN and infinity are rejected: no bound excludes both, and JSON cannot represent them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, validate_default=True, allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """The configuration as a JSON-ready dictionary."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """16 hex digits that change when any value changes."""
        return digest(self.plain())


C = TypeVar("C", bound=Config)
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # accepted by torch, numpy and scikit-learn alike


def load_config(cls: type[C], path: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read `path` (TOML), apply overrides such as `codec.steps=100`, validate.

    An override's value is parsed as TOML (`3`, `1e-4`, `true`, `["a", "b"]`), else taken as a string. Raises InputError,
    one line that names the file or the override: missing file, invalid TOML, unknown key (suggesting the nearest), missing
    key, invalid value.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({(error.strerror or 'error').lower()}); check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a TOML file ({_line(error)})") from error
    given: dict[tuple[str, ...], str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise InputError(f"{override!r}: write options as key=value, for example codec.steps=100")
        place = tuple(key.strip().split("."))
        _assign(data, place, _value(text), override)
        given[place] = override
    return parse_config(cls, data, str(path) if path is not None else "options", given)


def parse_config(cls: type[C], data: Mapping[str, Any], source: str, given: Mapping[tuple[str, ...], str] | None = None) -> C:
    """Validate `data`; errors name `source`, or the override in `given` (key path -> as typed) that set the value."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        # A misspelt key often also shows up as a missing one: report the misspelling, which the user can see.
        problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        place = tuple(str(part) for part in problem["loc"])
        origin = source
        for key, text in (given or {}).items():
            origin = text if place[: len(key)] == key else origin
        name = ".".join(place)
        if problem["type"] == "extra_forbidden":
            raise InputError(f"{origin}: unknown key {name!r}{_suggestion(cls, name)}") from None
        if problem["type"] == "missing":
            raise InputError(f"{origin}: {name!r} is missing; add {name}=VALUE") from None
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "string_pattern_mismatch" and len(place) == 1:  # do not show users a regular expression
            message = cls.model_fields[name].description or message
        shown = "" if isinstance(problem["input"], Mapping | Config) else f" (got {problem['input']!r})"
        raise InputError(f"{origin}: {name + ': ' if name else ''}{message[:1].lower() + message[1:]}{shown}") from None


def digest(value: Any) -> str:
    """16 hex digits that identify a JSON-ready value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def completed(recorded: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """A recorded configuration, with defaults filled in for newer options; keys that are not `config`'s are kept."""
    own = {key: value for key, value in recorded.items() if key in type(config).model_fields}
    try:
        return {**recorded, **type(config).model_validate(own).plain()}
    except ValidationError:  # a recorded value is no longer valid; `difference` will show it
        return dict(recorded)


def difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first difference between two JSON-ready values, in words ("codec.steps was 100, is 200"), or None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            found = difference(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
            if found:
                return found
        return None
    return None if old == new else f"{name or 'value'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 or isinstance(value, str) else text[:57] + "..."


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if list(document) == ["value"] else text


def _assign(data: dict[str, Any], place: tuple[str, ...], value: Any, override: str) -> None:
    table: Any = data
    for depth, part in enumerate(place[:-1], 1):
        if isinstance(table, list):  # an array of tables, indexed: encoder.0.steps
            table = table[int(part)] if part.isdigit() and int(part) < len(table) else None
        else:
            table = table.setdefault(part, {})
        if not isinstance(table, dict | list):
            raise InputError(f"{override}: {'.'.join(place[:depth])!r} is not a table")
    if isinstance(table, list):
        raise InputError(f"{override}: {'.'.join(place[:-1])!r} is a list; give an index, from 0, and a key")
    table[place[-1]] = value


def _names(cls: type[Config], prefix: str = "") -> Iterator[str]:
    """All keys of a configuration, dotted."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for inner in _configs(field.annotation):
            yield from _names(inner, f"{prefix}{name}.")


def _configs(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Config):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _configs(argument)


def _suggestion(cls: type[Config], name: str) -> str:
    known = list(_names(cls))
    table, _, last = ".".join(part for part in name.split(".") if not part.isdigit()).rpartition(".")
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == table}
    # A key that exists elsewhere ("lr" for "codec.lr") is missing its table.
    found = [key for key in known if key.rpartition(".")[2] == last]
    found += [beside[near] for near in get_close_matches(last, beside, n=1, cutoff=0.5)]
    return f"; did you mean {found[0]!r}?" if found else f"; known keys here: {', '.join(sorted(beside)) or 'none'}"
