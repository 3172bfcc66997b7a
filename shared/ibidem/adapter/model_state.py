"""A model by all that it holds, as JSON values: what its answers depend on beside the prompt.

The living object is walked, not its dump: dumps leave out excluded fields and what was set later, and of
nested models whatever their declared type does not name. What says nothing by its value (an auth object, an
unknown client) is compared by identity, in this process only: see `ibidem.adapter.object_identity`.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import logging
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache, partial
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr, TypeAdapter

from ibidem.adapter.client_settings import headers_of, settings_of
from ibidem.adapter.code_digest import CodeReader, counted_in, name_of, own_classes
from ibidem.adapter.object_identity import Watch, process, token_of
from ibidem.errors import NotCacheable
from ibidem.types import digest

State = TypeVar("State")

#: Settings of models in any framework that change when an answer comes, how often it is tried or who is told
#: of it, not what it says. Frameworks have more of them.
OPERATIONAL = frozenset(
    (
        "max_retries timeout request_timeout rate_limiter verbose callbacks callback_manager "
        "cache tags metadata custom_get_token_ids"
    ).split()
)
_TEMPERATURE = re.compile(r"""["']temperature["'][:,]\s*(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)""")
_CLIENT = re.compile(r"(^|_)a?clients?$|^_?http_")
_SECRET = re.compile(
    r"(?i)^_?([a-z0-9]+[-_])*?(api[-_]?key|authorization|password|secret[-_]?key|secret[-_]?access[-_]?key|"
    r"access[-_]?key([-_]id)?|(access|auth|api|ad|bearer|hf|refresh|session|security)[-_]?token"
    r"([-_]provider)?|credentials?)$"
    r"|^_?token$"
)
# Of these, what they are is not what a model is told.
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event)
_WORKING = (logging.Logger, *_LOCKS)
_BY_REPR = (date, time, timedelta, Decimal, UUID, PurePath, re.Pattern, range, complex)
_DEEPEST = 100
_SECRETS = (SecretStr, SecretBytes)
_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, partial)
_PLAIN = (str, int, float, bytes, Mapping, list, tuple, set, frozenset, *_FUNCTIONS)
_CLIENT_PARAMETERS = "_client_params"  # of langchain-anthropic and those that build on it


class Rules(NamedTuple):
    """Parts of a model that do not count.

    `operational` are settings that change when an answer comes, how it is sent or who is told of it, not what
    it says; of those that are `ambiguous` only the framework's own, since a model of the program may mean
    something else by them. `working` are fields in which the framework's own objects keep state.
    `late_clients` says that they make their clients at the first call, as their settings say then.

    Of a whole program also: objects of classes in `by_attributes` count by these, as models do by their
    fields; those of classes in `by_identity` never by what they hold; `configs` are the names of mappings
    whose entries count as settings do; and `unwrap` returns what a wrapper stands for.
    """

    operational: frozenset[str]
    ambiguous: frozenset[str] = frozenset()
    working: frozenset[str] = frozenset()
    late_clients: bool = False
    by_attributes: tuple[type, ...] = ()
    by_identity: tuple[type, ...] = ()
    configs: frozenset[str] = frozenset()
    unwrap: Callable[[Any], Any] | None = None


def temperature_of(described: Iterable[str]) -> float | None:
    """Return the highest temperature that descriptions name; None if unknown."""
    temperatures = [found for text in described if (found := _temperature_of(text)) is not None]
    return max(temperatures, default=None)


@lru_cache(256)
def _temperature_of(text: str) -> float | None:
    return max(map(float, _TEMPERATURE.findall(text)), default=None)


def state_of(model: Any, rules: Rules, *, lenient: bool = False) -> str:
    """Return class, the program's own code, fields and other values of a model, without secrets, as JSON.

    A model is read again only if something of it has changed.

    Args:
        model: The model, or an object of one of the classes that `rules` names.
        rules: What does not count.
        lenient: Whether somebody else vouches for what could only be compared by identity: then it counts by
            its class.

    Raises:
        NotCacheable: It is nested too deeply.
    """
    return _read_once(model, (rules, lenient), lambda walk: json.dumps(walk.value(model)))


def function_state(function: Callable[..., Any]) -> Any:
    """Return the program's own code behind a function as JSON values, read again only if it has changed.

    What could only be compared by identity counts by its class.
    """
    return _read_once(function, (None, True), lambda walk: walk.value(function))


def values_of(given: Mapping[str, Any], rules: Rules | None = None, *, lenient: bool = False) -> Any:
    """Convert the arguments of a call to JSON values.

    Their order counts, also within: models follow that of a schema.

    `rules` are for models among them.

    Raises:
        NotCacheable: One is used up by reading it.
    """
    return _Walk(rules, lenient=lenient, spends=True).value(dict(given))


class _Read(NamedTuple):
    """An object that was read, in which way, and what was made of it."""

    thing: weakref.ref[Any]
    way: tuple[Any, ...]
    watch: Watch
    state: Any


# A model whose own values refer to it, such as by a callback, is kept alive by its watch: hence a bound.
_MOST_READ = 1_024
_read: dict[int, _Read] = {}


def _read_once(thing: Any, way: tuple[Rules | None, bool], read: Callable[[_Walk], State]) -> State:
    """Return what `read` makes of an object, in a walk with these rules, lenient or not."""
    known, now = _read.get(id(thing)), (*way, process())
    if known is not None and known.thing() is thing and known.way == now and known.watch.is_unchanged():
        found: State = known.state
        return found
    rules, lenient = way
    walk = _Walk(rules, lenient=lenient)
    state = read(walk)
    if walk.watch.is_whole:
        with suppress(TypeError):  # an object that cannot be referred to weakly is read every time
            _read[id(thing)] = _Read(weakref.ref(thing, partial(_forget, id(thing))), now, walk.watch, state)
            if len(_read) > _MOST_READ:
                with suppress(StopIteration, RuntimeError):  # others, or the garbage collector, may change it
                    _read.pop(next(iter(_read)), None)  # the oldest
    return state


def _forget(number: int, gone: weakref.ref[Any]) -> None:
    # Called by the garbage collector, maybe in the midst of anything: no lock is taken here.
    if (known := _read.get(number)) is not None and known.thing is gone:
        _read.pop(number, None)


class _Walk:
    """One walk. Without rules, everything counts, secrets too."""

    def __init__(self, rules: Rules | None, *, lenient: bool, spends: bool = False) -> None:
        self._rules, self._lenient = rules, lenient
        self._spends = spends  # whether what can be read only once is read by the model
        self.watch = Watch()
        self._path: list[int] = []  # ids of the objects that are being read, each within the one before
        self._reading: list[type] = []

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind is str or kind is int or kind is bool or value is None:
            return value
        if kind is float:
            return int(value) if value.is_integer() else value
        number = id(value)
        if number in self._path:  # such as a bound method that a model holds of itself
            return {"holder": self._path.index(number)}
        if len(self._path) >= _DEEPEST:
            raise NotCacheable(
                "opaque_parameters", f"the model or the call holds {_DEEPEST} objects in another"
            )
        self._path.append(number)
        try:
            unwrap = self._rules.unwrap if self._rules is not None else None
            return self._composed(value if unwrap is None else unwrap(value))
        finally:
            self._path.pop()

    def named(self, name: str, value: Any) -> Any:
        """A value in a place of this name."""
        if self._rules and value is not None and _is_client(name) and not isinstance(value, BaseModel):
            return self._client(value)
        if self._rules and isinstance(value, Mapping) and "headers" in name:
            self.watch.mapping(value)
            return self.value({key: inner for key, inner in value.items() if not _is_secret(str(key))})
        if self._rules and isinstance(value, Mapping) and name in self._rules.configs:
            self.watch.mapping(value)
            return self.value({k: inner for k, inner in value.items() if k not in self._rules.operational})
        return self.value(value)

    def _composed(self, value: Any) -> Any:
        if isinstance(value, (str, int, Enum)):
            return self.value(value.value) if isinstance(value, Enum) else value
        if isinstance(value, Mapping):
            self.watch.mapping(value)
            return {str(key): self.named(str(key), inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            if isinstance(value, list):
                self.watch.sequence(value)
            return [self.value(inner) for inner in value]
        if isinstance(value, (set, frozenset)):
            if isinstance(value, set):
                self.watch.members(value)
            return sorted(json.dumps(self.value(inner)) for inner in value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BaseModel):
            return self.model(value)
        if isinstance(value, _FUNCTIONS):
            return {"function": self._function(value)}
        return self._object(value)

    def _attributes(self, value: Any, rules: Rules) -> dict[str, Any]:
        """An object by its attributes, with the program's own code of its class."""
        kind, held = type(value), vars(value)
        self.watch.mapping(held)
        made = {name for base in kind.__mro__ for name, m in vars(base).items() if type(m) is cached_property}
        counted = counted_in(kind)
        told = {
            name: self.named(name.lstrip("_"), inner)
            for name, inner in held.items()
            if name not in made
            and _counts(name.lstrip("_"), rules, not own_classes(kind))
            and not (isinstance(inner, _SECRETS) or (type(inner) is int and name in counted))
        }
        code = {"code": self._code(kind)} if own_classes(kind) else {}
        return {"class": name_of(kind), "attributes": told, **code}

    def _object(self, value: Any) -> Any:
        kind = type(value)
        if self._rules is not None and isinstance(value, self._rules.by_attributes):
            return self._attributes(value, self._rules)
        if isinstance(value, (bytes, bytearray)):
            if isinstance(value, bytearray):
                self.watch.give_up()
            return {"bytes": value.hex()}
        if isinstance(value, _BY_REPR) or kind.__name__ in ("URL", "AnyUrl", "HttpUrl"):
            return {"is": name_of(kind), "value": (repr if isinstance(value, re.Pattern) else str)(value)}
        if isinstance(value, (*_WORKING, *_SECRETS)):
            return {"is": name_of(kind)}
        if dataclasses.is_dataclass(value):
            self.watch.give_up()
            fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return {"is": name_of(kind), "fields": self.value(fields)}
        if self._spends and isinstance(value, (Iterator, io.IOBase)):
            raise NotCacheable(
                "opaque_parameters",
                f"the call is given a {kind.__name__}, which reading it uses up; "
                "pass what it holds, as a text or a list",
            )
        return self._identity(value)

    def _identity(self, value: Any) -> dict[str, str]:
        """Which object it is; its class, where somebody vouches for it."""
        return {"is": name_of(type(value)), **({} if self._lenient else {"this": token_of(value)})}

    def _class(self, kind: type) -> Any:
        try:
            if issubclass(kind, BaseModel):
                return {"class": kind.__qualname__, "schema": kind.model_json_schema()}
            return {"class": kind.__qualname__, "schema": TypeAdapter(kind).json_schema()}
        except Exception:  # whatever pydantic makes of a class that has no schema
            return {"class": name_of(kind), **({} if self._lenient else {"this": token_of(kind)})}

    def _function(self, function: Any) -> str:
        """A digest: a constant in the code is no setting, whatever it looks like."""
        self._spends = False
        return digest(json.dumps(CodeReader(self.value, self.named, self.watch).of_function(function)))

    def _client(self, client: Any) -> Any:
        """What is known of a client; if that is nothing, which one it is, unless a framework made it."""
        if found := settings_of(client, self.watch):
            return {name: self.named(name, value) for name, value in found.items() if not _is_secret(name)}
        return self.value(client)

    def model(self, model: BaseModel) -> dict[str, Any]:
        """A pydantic object."""
        if self._rules is not None and isinstance(model, self._rules.by_identity):
            return self._identity(model)
        kind = type(model)
        about = _about(kind, self._rules)
        held = model.__dict__
        self._note(model)
        fields = {
            name: self._field(name, value, about)
            for name in about.counting
            if (value := held.get(name)) is not None and not _is_left_out(name, value, about)
        }
        told: dict[str, Any] = {"class": about.name, "fields": fields}
        if about.is_own and self._rules:
            told["code"] = self._code(kind)
        others = {**(model.__pydantic_extra__ or {}), **(model.__pydantic_private__ or {})}
        others |= {name: value for name, value in held.items() if name not in about.fields}
        if others:
            shown = {name: self._other(model, name, value, about) for name, value in others.items()}
            if kept := {name: value for name, value in shown.items() if value is not None}:
                told["others"] = kept
        return told

    def _note(self, model: BaseModel) -> None:
        self.watch.mapping(model.__dict__)
        for others in (model.__pydantic_extra__, model.__pydantic_private__):
            if others is not None:
                self.watch.mapping(others)

    def _leniently(self, name: str, value: Any) -> Any:
        before, self._lenient = self._lenient, True
        try:
            return self.named(name, value)
        finally:
            self._lenient = before

    def _field(self, name: str, value: Any, about: _About) -> Any:
        unclear = self._rules and name in about.of_framework and _is_client(name)
        if unclear and not isinstance(value, BaseModel) and not settings_of(value, self.watch):
            return {"is": name_of(type(value))}
        return self.named(name, value)

    def _other(self, model: BaseModel, name: str, value: Any, about: _About) -> Any:
        """A private value or one beside the fields, if it is no working state of the class itself."""
        if value is None or _is_left_out(name, value, about) or (self._rules and _is_secret(name)):
            return None
        if name in about.computed:
            return self._kept_parameters(model, value, about) if name == _CLIENT_PARAMETERS else None
        if name in about.of_framework and self._rules and self._rules.late_clients and _is_client(name):
            return self._late_client(model.__dict__, value)
        if name in about.of_framework:
            unclear = _is_client(name) and not settings_of(value, self.watch)
            shown = None if unclear else self._leniently(name, value)
            return None if isinstance(shown, dict) and list(shown) == ["is"] else shown
        if name in about.made and not isinstance(value, (*_PLAIN, BaseModel)):
            return None
        return self.named(name, value)

    def _late_client(self, held: Mapping[str, Any], client: Any) -> Any:
        """What a client was made with, where the settings now say something else."""
        found = settings_of(client, self.watch)
        named = [value.rstrip("/") if isinstance(value, str) else value for value in held.values()]
        other = {name: value for name, value in found.items() if name != "headers" and value not in named}
        made, now = (
            {name: value for name, value in each.items() if not _is_secret(name)}
            for each in (found.get("headers", {}), headers_of(held.get("default_headers"), self.watch))
        )
        other |= {"headers": made} if found and made != now else {}
        return {name: self.named(name, value) for name, value in other.items()} or None

    def _kept_parameters(self, model: BaseModel, kept: Any, about: _About) -> Any:
        """What a client was made with, where the settings now say something else."""
        computed = inspect.getattr_static(type(model), _CLIENT_PARAMETERS)
        now = computed.func(model)
        if now == kept or not self._rules:
            return None
        one, other = (
            {k: v for k, v in each.items() if k not in self._rules.operational and not _is_secret(k)}
            for each in (now, kept)
        )
        return None if one == other else {name: self.named(name, value) for name, value in other.items()}

    def _code(self, kind: type) -> str:
        """A digest of the program's own code of a class."""
        if kind in self._reading:
            return ""
        known = _codes.get(kind, {}).get(self._lenient)
        if known is None or known.process != process() or not known.watch.is_unchanged():
            known = self._code_read(kind)
        self.watch.add(known.watch.is_unchanged)
        return known.digest

    def _code_read(self, kind: type) -> _Code:
        around, self.watch = self.watch, Watch()
        self._reading.append(kind)
        try:
            reader = CodeReader(self.value, self.named, self.watch)
            read = _Code(process(), self.watch, digest(json.dumps(reader.of_class(kind))))
        finally:
            self._reading.pop()
            self.watch = around
        if not self._reading and read.watch.is_whole:
            _codes.setdefault(kind, {})[self._lenient] = read
        return read


class _Code(NamedTuple):
    """Code of a class that was read, in which process."""

    process: str
    watch: Watch
    digest: str


_codes: weakref.WeakKeyDictionary[type, dict[bool, _Code]] = weakref.WeakKeyDictionary()


class _About(NamedTuple):
    """A class of pydantic objects: names of its attributes by what they are."""

    name: str
    is_own: bool
    fields: frozenset[str]
    counting: tuple[str, ...]
    of_framework: frozenset[str]
    computed: frozenset[str]
    made: frozenset[str]
    counted: frozenset[str]


@lru_cache(512)
def _about(kind: type[BaseModel], rules: Rules | None) -> _About:
    own = own_classes(kind)
    bases: list[Any] = [base for base in kind.__mro__ if base not in own]
    declared = {name for base in bases for name in _declared(base)} - {n for b in own for n in _annotated(b)}
    fields = kind.model_fields
    private: Mapping[str, Any] = kind.__private_attributes__
    members = [item for base in kind.__mro__ for item in vars(base).items()]
    computed = {name for name, value in members if isinstance(value, cached_property)}
    return _About(
        name_of(kind),
        bool(own),
        frozenset(fields),
        tuple(name for name in fields if rules is None or _counts(name, rules, name in declared)),
        frozenset(declared),
        frozenset(computed),
        frozenset(name for name, attribute in private.items() if attribute.default_factory is not None),
        counted_in(kind),
    )


def _is_left_out(name: str, value: Any, about: _About) -> bool:
    """Whether it is a secret, or a number that the class itself counts up."""
    return isinstance(value, _SECRETS) or (type(value) is int and name in about.counted)


def _counts(name: str, rules: Rules, of_framework: bool) -> bool:
    if name in rules.operational:
        return name in rules.ambiguous and not of_framework
    return not (_is_secret(name) or (of_framework and name in rules.working))


def _declared(kind: Any) -> Iterator[str]:
    """Names of the fields and private attributes of a class and its bases."""
    yield from getattr(kind, "__pydantic_fields__", ())
    yield from getattr(kind, "__private_attributes__", ())


def _annotated(kind: type) -> Iterator[str]:
    """Names that the class itself declares; all of its fields where its annotations cannot be read."""
    try:
        yield from inspect.get_annotations(kind)
    except Exception:  # of names that only a type checker knows
        yield from _declared(kind)


@lru_cache(4096)
def _is_client(name: str) -> bool:
    return _CLIENT.search(name) is not None


@lru_cache(4096)
def _is_secret(name: str) -> bool:
    return _SECRET.match(name) is not None
