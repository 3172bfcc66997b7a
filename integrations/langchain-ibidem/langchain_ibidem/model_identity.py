"""Describe a call as a stable text: model, parameters, the form of its answer; and whose call it is.

`model.invoke(question, config={"metadata": {"ibidem_namespace": "acme"}})` says for one call what
`ibidem.scope` says for a block. Where the two name different tenants, nothing is cached: metadata can come
from a client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel

from ibidem.adapter.model_state import Rules, state_of, values_of
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.scope import EMPTY_SCOPE, current, require_namespace, scope_of
from ibidem.types import Answer, Hit, Scope
from langchain_ibidem.call import ModelCall
from langchain_ibidem.messages import decode, encode, with_numbers

# Settings that change when an answer comes, how it is sent or who is told of it, not what it says.
OPERATIONAL = frozenset(
    (
        # how long to wait, how often to try, how many at once
        "max_retries timeout request_timeout default_request_timeout stream_chunk_timeout "
        "max_concurrent_requests batch_size "
        # the transport: what a client sends is read from the clients that the model holds
        "http_client http_async_client http_socket_options "
        # whether the answer comes in pieces
        "stream streaming disable_streaming stream_usage stream_options "
        # who is told of it, and by which name
        "cache verbose callbacks callback_manager tags metadata name rate_limiter custom_get_token_ids "
        # what is known of the model, for programs; how its texts are counted, before they are sent
        "profile tiktoken_model_name allowed_special disallowed_special count_tokens "
        # looked at once, when the model is made
        "validate_model_on_init validate_base_url"
    ).split()
)
RULES = Rules(
    operational=OPERATIONAL,
    ambiguous=frozenset("tags metadata name profile batch_size count_tokens".split()),
    # Of LangChain's fakes, which of their answers comes next; of messages, what each call writes into them.
    working=frozenset(("i", "id", "response_metadata")),
)
# A class shows its name but not its fields, an object its address: neither says what the model was told.
_OPAQUE = re.compile(r"<class '| at 0x[0-9a-fA-F]+>")
# A parameter that tells one model from another, and has a value.
_NAMING = re.compile(r"""\('\w*(?:model|deployment|engine|repo|endpoint|responses)\w*', ['"][^'"]""")
_TOOLS = ("tools", "functions")  # parameters
_PREFIX = "ibidem_"  # of metadata
_TERMS = frozenset(("namespace", "user", "bypass", "max_age", "ttl", "tags"))


def describe(llm_string: str, call: ModelCall | None, *, named: bool = False) -> dict[str, str]:
    """Describe the living model, its parameters and tools; by `llm_string` where the call is unknown.

    The texts, by what they describe, are compared; they may hold secrets: only ever hash them.

    Args:
        llm_string: LangChain's description of the model and the call. It is made once for a model, whatever
            is changed later, and leaves out fields and what is bound to a completion model.
        call: The call itself; None if it is not known.
        named: Whether somebody else says which model it is, and vouches for what cannot be compared.

    Raises:
        NotCacheable: Something that the answer depends on cannot be described.
    """
    if call is None or call.model is None:
        _require_description(llm_string, named=named)
        return {"model": llm_string}
    given = {name: value for name, value in sorted(call.parameters.items()) if name not in OPERATIONAL}
    if call.stop is not None:
        given["stop"] = call.stop
    tools = {name: given.pop(name) for name in _TOOLS if name in given}
    names = ResponseFormat.of(call.parameters).names
    described = {"model": state_of(call.model, RULES, lenient=named)}
    for name, values in (("parameters", given), ("tools", tools)):
        if values:
            described[name] = with_numbers(json.dumps(values_of(values)), names)
    return described


def _require_description(llm_string: str, *, named: bool) -> None:
    """Raise `NotCacheable` unless LangChain's description shows the parameters and the model."""
    if _OPAQUE.search(llm_string):
        raise NotCacheable(
            "opaque_parameters",
            "the parameters hold a Python object, and nothing but LangChain's description of the call is "
            'known; for structured output pass a JSON schema, or use method="function_calling"',
        )
    if not named and llm_string.startswith("[") and not _NAMING.search(llm_string):
        raise NotCacheable(
            "model_unknown",
            "LangChain's description of this model does not say which one it is; give the model a cache of "
            "its own: model.cache = IbidemCache(cache, model_id='its name and settings')",
        )


# The form that the answer must have ---------------------------------------------------------------------

_MADE_UP_NAME = re.compile(r"response_format_[0-9a-f]{4}")
_WITH_FORMS = ("tools", "tool_choice", "response_format")  # parameters that name forms


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that the answer to one call must have: its schema is compared, and its validators are asked.

    `create_agent` calls a JSON schema without a title `response_format_` and four random letters, anew in
    every process. Requests are compared, and answers stored, with a number in place of such a name; an answer
    that is repeated gets the name that is wanted now.

    Attributes:
        schema: The class that it must fit, if that is known.
        names: The names that LangChain made up for forms without a title, in order.
    """

    schema: type[BaseModel] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> ResponseFormat:
        """Read the form from the parameters of a call."""
        form = parameters.get("response_format")
        schema = form if isinstance(form, type) and issubclass(form, BaseModel) else None
        names = _made_up_names([parameters.get(key) for key in _WITH_FORMS])
        return cls(schema, tuple(dict.fromkeys(names)))

    def to_answer(self, generations: Sequence[Generation], seconds: float | None = None) -> Answer:
        """Convert what a model returned to the answer to store.

        Raises:
            NotCacheable: It does not fit the form, so the program will ask again; or it cannot be stored.
        """
        if not all(map(self._fits, generations)):
            name = getattr(self.schema, "__name__", "")
            raise NotCacheable("answer_invalid", f"the answer does not fit {name}")
        return encode(generations, seconds, self.names)

    def objection(self, hit: Hit) -> str:
        """Say why a stored answer is of no use: a validator may have changed, which no schema shows."""
        if self.schema is None:
            return ""
        return "" if all(map(self._fits, decode(hit))) else "answer_invalid"

    def _fits(self, generation: Generation) -> bool:
        if self.schema is None:
            return True
        if isinstance(generation, ChatGeneration):
            message = generation.message
            if getattr(message, "tool_calls", None) or message.additional_kwargs.get("refusal"):
                return True  # not the answer in its form
        try:
            self.schema.model_validate_json(generation.text)
        except Exception:  # validators are the program's own code
            return False
        return True


def is_made_up(name: object) -> bool:
    """Whether LangChain made up the name of a form."""
    return isinstance(name, str) and _MADE_UP_NAME.fullmatch(name) is not None


def _made_up_names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _made_up_names(inner)
    elif is_made_up(value):
        yield value


# Whose call it is ---------------------------------------------------------------------------------------


def scope_for(call: ModelCall | None, *, required: bool) -> Scope:
    """Return the scope of a call.

    Args:
        call: The call; None if it is not known. Then only `ibidem.scope` counts.
        required: Whether the call must say its namespace.

    Raises:
        NotCacheable: It does not; or it says what contradicts itself or cannot be used.
    """
    if call is None:
        return scope_of_run({}, {}, required=required)
    return scope_of_run(call.metadata, call.inherited, required=required)


def scope_of_run(metadata: Mapping[str, Any], inherited: Mapping[str, Any], *, required: bool) -> Scope:
    """Return the scope of a run with these metadata, of which those `inherited` are not its own.

    Raises:
        NotCacheable: As `scope_for`.
    """
    here = current()
    named = _from_metadata(metadata, inherited)
    if named is not EMPTY_SCOPE:
        here = _joined(here, named)
    if required:
        require_namespace(here, f', or give the metadata "{_PREFIX}namespace"')
    return here


def _from_metadata(metadata: Mapping[str, Any], inherited: Mapping[str, Any]) -> Scope:
    """Return the scope that the metadata of a run name."""
    given = {key: value for key, value in metadata.items() if key.startswith(_PREFIX)}
    if not given:
        return EMPTY_SCOPE
    for key, value in given.items():
        if inherited.get(key, value) != value:  # the model's own metadata against that of the call
            raise _conflict(key)
        if key.removeprefix(_PREFIX) not in _TERMS:
            raise NotCacheable("metadata_invalid", f"there is no metadata {key}")
        if value is None:
            raise NotCacheable("metadata_invalid", f"metadata {key} is None")
    try:
        return scope_of(**{key.removeprefix(_PREFIX): value for key, value in given.items()})
    except InvalidInput as error:
        raise NotCacheable("metadata_invalid", f"metadata: {_PREFIX}{error}") from None


def _joined(here: Scope, named: Scope) -> Scope:
    """Combine both; of two limits the narrower one counts."""
    for name in ("namespace", "user"):
        one, other = getattr(here, name), getattr(named, name)
        if one and other and one != other:
            raise _conflict(_PREFIX + name)
    return replace(
        here.merge(named), max_age=_least(here.max_age, named.max_age), ttl=_least(here.ttl, named.ttl)
    )


def _conflict(key: str) -> NotCacheable:
    return NotCacheable("namespace_conflict", f"two places name different values for {key}")


def _least(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
