"""What the configs of all campaigns share: types of keys, and errors that name the key and what is allowed."""

from __future__ import annotations

import json
import logging
import os
import textwrap
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SerializationInfo,
    ValidationError,
    ValidationInfo,
)

log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A config is not valid; the message names the file, every wrong key, and what is allowed."""


def _absolute(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("should be a path in quotes")
    context = info.context or {}
    path = Path(os.path.abspath(context.get("base", Path()) / Path(value).expanduser()))
    context.get("given", {})[path] = str(value)
    return path


def _as_given(path: Path, info: SerializationInfo) -> str:
    return (info.context or {}).get(path, str(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _not_a_file(path: Path) -> Path:
    if path.is_file():
        raise ValueError(f"{path} is a file; give a directory, which is made when missing")
    return path


def plain_data(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments, if they survive a journal."""
    for name, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{name} should be plain data: numbers, strings, true, false, lists and tables ({error}); "
                "give a calculator that needs more as an object, in Python"
            ) from error
    return arguments


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**62)]  # further seeds are counted from it
Seconds = Annotated[float, Field(gt=0, le=1e7)]  # timers overflow beyond
GivenPath = Annotated[Path, PlainValidator(_absolute), PlainSerializer(_as_given)]
ExistingFile = Annotated[GivenPath, AfterValidator(_existing)]
RunDirectory = Annotated[GivenPath, AfterValidator(_not_a_file)]


class Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Config(Table):
    """All of a config. Paths are absolute; `load` reads one."""

    _given: dict[Path, str] = PrivateAttr(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain data with every default filled in, and paths as given, so that a folder may be moved."""
        return self.model_dump(mode="json", context=self._given)

    def continued(self, recorded: Mapping[str, Any], may_change: Collection[str] = ()) -> Self:
        """The config of a campaign that is resumed: keys that are not set keep the values it was begun with.

        So a run directory of an earlier version goes on with the defaults of that version.

        Parameters
        ----------
        recorded : `as_json` of the config that the campaign ran with last.
        may_change : dotted keys, or tables of keys, of which the present defaults are taken.
        """
        kept: list[str] = []
        data = _with_recorded(self, recorded, tuple(f"{key}." for key in may_change), "", kept)
        if not kept:
            return self
        log.warning("the campaign goes on with what it was begun with, not the present defaults: %s", ", ".join(kept))
        config = type(self).model_validate_json(json.dumps(data), context={"calculator_given": True})
        config._given.update(self._given)
        return config

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any], **context: Any) -> Self:
        """Read and validate a config.

        Parameters
        ----------
        source : path of a TOML file, or the same as a mapping; its paths are relative to the working directory.
        context : what the validators may ask for.

        Raises
        ------
        ConfigError : no such file, not TOML, or keys missing, unknown or wrong; the message names all of them.
        """
        if isinstance(source, Mapping):
            name, base, data = "the config", Path.cwd(), dict(source)
        else:
            name, base = str(source), Path(source).expanduser().absolute().parent
            try:
                data = tomllib.loads(text := Path(source).expanduser().read_text(encoding="utf-8-sig"))
            except OSError as error:
                raise ConfigError(f"{name} cannot be read: {error.strerror}; give the path of a TOML file") from error
            except UnicodeDecodeError as error:
                raise ConfigError(f"{name} is not a TOML file: it is not text in UTF-8 ({error})") from error
            except RecursionError as error:
                raise ConfigError(f"{name} is not a config: its tables are nested too deeply") from error
            except tomllib.TOMLDecodeError as error:
                hint = "; write a path with backslashes in single quotes: 'C:\\folder'" if "\\" in text else ""
                raise ConfigError(f"{name} is not valid TOML: {error}{hint}") from error
        given: dict[Path, str] = {}
        try:
            config = cls.model_validate(data, context={"base": base, "given": given, **context})
        except ValidationError as error:
            lines = corrections(cls, error)
            count = "1 key needs" if len(lines) == 1 else f"{len(lines)} keys need"
            raise ConfigError(f"{name}: {count} correction\n" + textwrap.indent("\n".join(lines), "  ")) from None
        config._given.update(given)
        return config


def _with_recorded(
    table: Table, recorded: Mapping[str, Any], free: tuple[str, ...], path: str, kept: list[str]
) -> dict[str, Any]:
    """Plain data of a table with recorded values in place of defaults, each of which is added to ``kept``."""
    data = table.model_dump(mode="json")
    for name, value in data.items():
        key, own = f"{path}{name}", getattr(table, name)
        if name not in recorded or f"{key}.".startswith(free):
            continue
        if isinstance(own, Table) and isinstance(recorded[name], Mapping):
            data[name] = _with_recorded(own, recorded[name], free, f"{key}.", kept)
        elif name not in table.model_fields_set and value != recorded[name]:
            data[name] = recorded[name]
            kept.append(f"{key} = {shown(recorded[name])}")
    return data


def corrections(table: type[BaseModel], error: ValidationError) -> list[str]:
    """What is wrong with the keys of a table, a line each."""
    found = error.errors(include_url=False)
    inner = [e["loc"] for e in found]
    # A list whose items are wrong is not also to be called too short.
    return [_line(table, e) for e in found if not any(loc[:-1] == e["loc"] for loc in inner)]


def _line(root: type[BaseModel], error: Any) -> str:
    """One error of pydantic in words: key, what was found, what is allowed."""
    *tables, key = loc = error["loc"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    table = _table_at(root, tables)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_hint(root, str(key), table or root)}"
    field = table.model_fields.get(str(key)) if table else None
    meaning = field.description if field else None
    if error["type"] == "missing":
        return f"{path}: missing; give {meaning}"
    if error["type"] == "value_error":
        problem, meaning = str(error["ctx"]["error"]), None
    elif error["type"] == "model_type":
        problem, meaning = "should be a table", None
    else:
        problem = error["msg"].replace("Input should be", "should be").replace("tuple", "list")
    # A table is named, not shown, and so is a key that is absent.
    named = error["input"] is None or (isinstance(error["input"], Mapping) and _table_at(root, list(loc)))
    found = "" if named else f" = {shown(error['input'])}"
    return f"{path}{found}: {problem}" + (f" ({meaning})" if meaning else "")


def shown(value: Any) -> str:
    """A value as an error message shows it."""
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _table_at(root: type[BaseModel], path: list[str | int]) -> type[BaseModel] | None:
    """The class of the table at a path of keys, None where that is no table."""
    table: type[BaseModel] | None = root
    several = False  # whether the path stands at a dict or list of tables, whose keys may be any
    for key in path:
        if several:
            several = False
            continue
        field = table.model_fields.get(str(key)) if table else None
        kinds = list(_within(field.annotation)) if field else []
        several = any(get_origin(kind) in (dict, tuple) for kind in kinds)
        table = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return table


def _within(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _within(part)


def _hint(root: type[BaseModel], key: str, table: type[BaseModel]) -> str:
    if near := get_close_matches(key, table.model_fields, 1):
        return f"did you mean {near[0]}?"
    for name in root.model_fields:
        other = _table_at(root, [name])
        if other is not None and other is not table and key in other.model_fields:
            return f"it belongs in [{name}]"
    return f"allowed here: {', '.join(table.model_fields)}"
