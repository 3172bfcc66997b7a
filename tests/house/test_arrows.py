"""The direction of imports: which package may import from which.

`ARROWS` records what is so, not what is meant to be. An arrow that is not in it is refused, and one that
nothing uses any more must be taken off, so that the table can only become shorter. The target is a table of
layers, in which a package imports from lower ones alone:

    9  integrations, ibidem_lab, cli
    8  adapter
    7  cache -> pipeline
    6  runtime
    5  audits, active_model, maintenance, telemetry, settings
    4  index, examples, costs
    3  storage
    2  prompts, matching, lifecycle, embedding, single_flight, provenance, scope
    1  types, _util
    0  errors
"""

from __future__ import annotations

import pytest

from tests.house.imports import ADAPTERS, Graph, between_components, project_imports

# Names of the core go without `ibidem.`; `ibidem` itself is its `__init__`. Imports for types alone count.
ARROWS = {
    "ibidem": "cache decision embedding errors examples forgetting lifecycle opening request scoping",
    "adapting": "cache errors ibidem",
    "advice": "embedding entry examples fit intervals replay request storage",
    "answering": "bypass errors flights request scoping telemetry threads",
    "audits": (
        "backend background bounded decision embedding errors faults locks models request scoping settings "
        "stats storage"
    ),
    "backend": (
        "audits background decision embedding entry errors examples faults flights index lifecycle locks "
        "models places request scoping settings storage telemetry"
    ),
    "background": "errors faults",
    "bounded": "",
    "breaker": "",
    "bypass": "request scoping",
    "cache": (
        "answering audits backend bypass decision errors examples finding fit forgetting keeping lifecycle "
        "locks models patience pickling prices request scoping settings sharing stats storage teaching "
        "telemetry"
    ),
    "cli": (
        "advice audits cache decision doctor doctor_index embedding entry errors examples export faults fit "
        "foreign ibidem index lifecycle models places prices private redaction replay replay_page report "
        "request review settings stats storage teaching tuning"
    ),
    "client_settings": "watching",
    "code_digest": "scoped_streams watching",
    "decision": "entry errors invisible normal_form request",
    "doctor": "doctor_index embedding errors faults fit foreign index models places settings storage",
    "doctor_index": "index settings storage",
    "embedding": "errors faults invisible locks request",
    "entry": "request",
    "errors": "",
    "examples": "backend bounded bypass embedding entry errors export locks request scoping storage",
    "export": "decision embedding entry errors examples private redaction request scoping storage",
    "faults": "errors locks",
    "finding": "audits backend bounded decision entry lifecycle locks models request telemetry",
    "fit": "cache decision embedding entry errors faults intervals replay request settings storage teaching",
    "flights": "bounded",
    "foreign": "ibidem",
    "forgetting": "bounded cache errors locks request threads",
    "index": "breaker embedding entry errors faults locks patience storage urls",
    "inquiry": "answering cache errors faults forgetting request scoped_streams threads",
    "intervals": "",
    "invisible": "",
    "keeping": "backend decision entry examples lifecycle models request telemetry",
    "lifecycle": "backend bounded entry errors examples faults locks request scoping storage",
    "locks": "",
    "model_state": "client_settings code_digest errors object_tokens request watching",
    "models": (
        "audits backend cache decision embedding entry errors faults fit index locks places request "
        "settings storage"
    ),
    "normal_form": "",
    "object_tokens": "bounded locks",
    "opening": "audits cache errors lifecycle prices request settings sharing",
    "patience": "",
    "pickling": "cache errors locks opening settings urls",
    "pieces": "",
    "places": "errors faults index request settings storage",
    "prices": "errors storage",
    "private": "errors",
    "prompts": "request scoping",
    "redaction": "",
    "replay": "decision embedding entry intervals request",
    "replay_page": "replay",
    "report": "advice audits errors fit intervals prices settings stats storage",
    "request": "errors normal_form scoping",
    "review": "audits bounded decision entry errors fit invisible lifecycle report request settings storage",
    "scoped_streams": "locks scoping",
    "scoping": "errors request",
    "settings": "decision errors lifecycle request urls",
    "sharing": "backend embedding locks request settings",
    "stats": "audits backend intervals prices storage",
    "storage": "breaker entry errors examples faults lifecycle locks patience request scoping urls",
    "teaching": (
        "advice audits bypass cache decision embedding entry errors examples private replay request storage"
    ),
    "telemetry": "backend errors faults ibidem locks patience prices request scoping sharing storage",
    "threads": "locks",
    "tuning": "decision embedding entry errors fit models replay request",
    "urls": "",
    "watching": "",
    "ibidem_lab": "",
    "ibidem_lab.models": "embedding tuning",
    "langchain_ibidem": (
        "adapting answering bounded bypass cache decision errors examples faults foreign forgetting inquiry "
        "lifecycle locks model_state object_tokens pieces prompts request scoped_streams scoping threads"
    ),
    "llama_index_ibidem": (
        "adapting bounded cache errors examples faults foreign forgetting inquiry lifecycle locks "
        "model_state pieces prompts request scoped_streams scoping threads"
    ),
}
#: What no package of the left side may ever import, whatever the table says.
FORBIDDEN = {
    "ibidem": ("ibidem_lab", *ADAPTERS),
    "ibidem_lab": ADAPTERS,
    "langchain_ibidem": ("ibidem_lab", "llama_index_ibidem"),
    "llama_index_ibidem": ("ibidem_lab", "langchain_ibidem"),
}


def test_there_is_no_new_arrow() -> None:
    """A package seldom needs one more: turn the arrow round, or move what is needed."""
    new = sorted(arrows() - table())

    assert not new, "\n".join(["these are new:", *new])


def test_an_arrow_that_is_gone_is_off_the_table() -> None:
    """So that it does not come back."""
    gone = sorted(table() - arrows())

    assert not gone, "\n".join(["take it off the table, nothing uses it any more:", *gone])


def test_the_table_has_a_row_for_each_component() -> None:
    """Also for one that imports nothing of the project, and for no other."""
    assert set(ARROWS) == {_short(one) for one in between_components(project_imports())}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_does_not_know_its_users(package: str) -> None:
    """The core stands alone, the lab and the adapters on the core, and the adapters not on each other."""
    found = forbidden(project_imports(), package)

    assert not found, "\n".join(found)


def test_the_check_of_forbidden_imports_finds_them() -> None:
    """The check itself can fail."""
    graph = {"ibidem.cache": frozenset({"ibidem_lab.models"}), "ibidem_lab.fit": frozenset({"ibidem.cache"})}

    assert forbidden(graph, "ibidem") == ["ibidem.cache -> ibidem_lab.models"]
    assert forbidden(graph, "ibidem_lab") == []


def arrows() -> set[str]:
    """The arrows between components as the source has them."""
    graph = between_components(project_imports())
    return {f"{_short(one)} -> {_short(other)}" for one, others in graph.items() for other in others}


def table() -> set[str]:
    """The arrows that are allowed."""
    return {f"{one} -> {other}" for one, others in ARROWS.items() for other in others.split()}


def forbidden(graph: Graph, package: str) -> list[str]:
    """The imports of a package that `FORBIDDEN` names."""
    return [
        f"{module} -> {imported}"
        for module, others in graph.items()
        for imported in sorted(others)
        if _package(module) == package and _package(imported) in FORBIDDEN[package]
    ]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _short(component: str) -> str:
    return component.removeprefix("ibidem.")
