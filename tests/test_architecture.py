"""One arrow: integrations -> shared. Heavy libraries behind one door each."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("shared/**/*.py"), *ROOT.glob("integrations/**/*.py")])
FRAMEWORKS = {"langchain", "langchain_core", "langgraph", "llama_index"}
DOORS = {
    "chromadb": {"shared/ibidem/index/chroma.py"},
    "onnxruntime": {"shared/ibidem/embedding/onnx_model.py"},
    "sqlalchemy": {"shared/ibidem/storage/"},
    "psycopg": {"shared/ibidem/storage/postgres.py"},
    "jinja2": {"shared/ibidem_lab/html.py"},
    "starlette": {"shared/ibidem_lab/review/app.py", "shared/ibidem_lab/review/gate.py"},
    "uvicorn": {"shared/ibidem_lab/review/server.py"},
    "opentelemetry": {"shared/ibidem/telemetry/"},
    "vl_convert": {"shared/ibidem_lab/report/drawing.py"},
    "torch": {
        "shared/ibidem_lab/tuning/loss.py",
        "shared/ibidem_lab/tuning/training.py",
        "shared/ibidem_lab/models/",
    },
    "transformers": {"shared/ibidem_lab/tuning/training.py", "shared/ibidem_lab/models/network.py"},
    "sentence_transformers": {
        "shared/ibidem/embedding/adapters.py",
        "shared/ibidem_lab/tuning/loss.py",
        "shared/ibidem_lab/tuning/training.py",
    },
}
LONGEST_FUNCTION, LONGEST_MODULE = 40, 500
# Read from top to bottom; with vetted answers, second opinions, what explains a lookup, and conversations.
LONGEST = {
    "shared/ibidem/cache.py": 772,
    "shared/ibidem/pipeline.py": 740,
    "shared/ibidem/types.py": 635,
    "shared/ibidem/prompts/key.py": 590,
    "shared/ibidem/storage/engine.py": 512,  # of both databases, with their locks, errors and refusals
    "shared/ibidem/storage/vectors.py": 556,  # all vectors, a page at a time; PostgreSQL searches them
}


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def name(path: Path) -> str:
    """Path relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def test_the_random_generator_of_the_program_is_left_alone() -> None:
    """Who has seeded it expects his own numbers, whatever our threads do meanwhile."""
    shared = {
        (name(path), node.attr)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr not in {"Random", "SystemRandom"}
    }

    assert not shared, "draw from a random.Random or random.SystemRandom of your own"


def test_the_core_knows_no_framework() -> None:
    """Nothing under shared/ imports a framework or an adapter."""
    forbidden = FRAMEWORKS | {"langchain_ibidem", "llama_index_ibidem"}
    core = [path for path in SOURCES if name(path).startswith("shared/")]

    assert {(name(path), found) for path in core for found in set(imports(path)) & forbidden} == set()


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_have_one_door(library: str) -> None:
    """Who wants to replace Chroma or SQLAlchemy finds all of it in one place."""
    found = {name(path) for path in SOURCES if library in imports(path)}

    assert {door for door in DOORS[library] if any(path.startswith(door) for path in found)} == DOORS[library]
    assert {path for path in found if not path.startswith(tuple(DOORS[library]))} == set()


@pytest.mark.parametrize(("package", "other"), [("langchain", "llama_index"), ("llama_index", "langchain")])
def test_an_adapter_knows_its_own_framework_only(package: str, other: str) -> None:
    """LangChain users need no LlamaIndex, and the other way round."""
    folder = f"integrations/{package.replace('_', '-')}-ibidem/"
    mine = [path for path in SOURCES if name(path).startswith(folder)]

    assert mine
    assert not [path for path in mine if any(found.startswith(other) for found in imports(path))]


def test_importing_ibidem_loads_nothing_heavy() -> None:
    """Who only imports, or only asks for --help, does not wait."""
    heavy = {"chromadb", "torch", "onnxruntime", "opentelemetry", "sqlalchemy", "numpy", "rich", *FRAMEWORKS}
    code = f"import sys, ibidem; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_no_package_shadows_a_framework() -> None:
    """`llama_index/__init__.py` in our wheel would make LlamaIndex unimportable."""
    made = ("site", ".")  # the site has a page for each framework; environments begin with a dot
    tops = [path for path in ROOT.iterdir() if not path.name.startswith(made)]
    folders = {path.name for top in tops for path in (top, *top.rglob("*")) if path.is_dir()}

    assert not folders & FRAMEWORKS


def test_the_public_names_exist() -> None:
    """`__all__` is what a user may rely on."""
    import ibidem

    assert sorted(ibidem.__all__) == ibidem.__all__
    assert all(hasattr(ibidem, public) for public in ibidem.__all__)


def test_modules_and_functions_stay_small() -> None:
    """The budgets: 500 lines a module (`cache.py` 772), 40 a function without its docstring."""
    modules = [
        name(path)
        for path in SOURCES
        if len(path.read_text().splitlines()) > LONGEST.get(name(path), LONGEST_MODULE)
    ]
    functions = [
        f"{name(path)}:{node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _length(node) > LONGEST_FUNCTION
    ]

    assert modules + functions == []


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return (function.end_lineno or 0) - first.lineno + 1


def test_an_adapter_without_its_framework_says_what_to_install() -> None:
    """The error is the command."""
    code = "import sys; sys.modules['langchain_core'] = None; import langchain_ibidem"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "pip install 'ibidem-cache[langchain]'" in done.stderr


def test_texts_name_their_encoding() -> None:
    """Else it is the system's: another one on Windows, and a warning, or an error, in strict test suites."""
    checked = [*SOURCES, *sorted(ROOT.glob("examples/**/*.py"))]
    calls = [
        (path, node)
        for path in checked
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]

    assert [f"{name(path)}:{call.lineno}" for path, call in calls if _takes_the_systems_encoding(call)] == []


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("open(file)", True),
        ("open(file, 'w')", True),
        ("open(file, 'rb')", False),
        ("open(file, encoding='utf-8')", False),
        ("io.open(file, mode='a')", True),
        ("os.fdopen(handle, 'w')", True),
        ("os.open(file, flags)", False),
        ("ibidem.open(place)", False),
        ("path.open()", True),
        ("path.open('wb')", False),
        ("path.open(encoding='utf-8')", False),
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("path.write_text(text, newline='', encoding='utf-8')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
        ("subprocess.run(command, capture_output=True)", False),
        ("tempfile.NamedTemporaryFile('w')", True),
        ("tempfile.NamedTemporaryFile()", False),
        ("io.TextIOWrapper(raw)", True),
    ],
)
def test_the_check_of_encodings_finds_them(code: str, bad: bool) -> None:
    """The check itself can fail."""
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _takes_the_systems_encoding(call) is bad


# Calls that handle text if their mode, the argument at this place, says so; and its default.
_MODES = {
    "open": (1, "r"), "fdopen": (1, "r"), "NamedTemporaryFile": (0, "w+b"), "TemporaryFile": (0, "w+b"),
    "SpooledTemporaryFile": (1, "w+b"),
}  # fmt: skip
_ENCODING_AT = {"read_text": 0, "write_text": 1, "TextIOWrapper": 1}


def _takes_the_systems_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text and leaves open in which encoding."""
    function, given = call.func, {keyword.arg: keyword.value for keyword in call.keywords}
    called = getattr(function, "attr", getattr(function, "id", ""))
    if "encoding" in given:
        return False
    if called in _ENCODING_AT:
        return len(call.args) <= _ENCODING_AT[called]
    if called in _MODES:
        if called == "open" and isinstance(function, ast.Attribute):
            owner = getattr(function.value, "id", "")
            if owner in ("os", "ibidem", "webbrowser", "self", "vectors"):  # the latter open an index
                return False
            at = 1 if owner in ("io", "codecs", "gzip") else 0  # of a path
        else:
            at = _MODES[called][0]
        mode = given.get("mode") or (call.args[at] if len(call.args) > at else None)
        text = mode.value if isinstance(mode, ast.Constant) else _MODES[called][1]
        return not (isinstance(text, str) and "b" in text)
    return any(
        isinstance(flag := given.get(one), ast.Constant) and flag.value
        for one in ("text", "universal_newlines")
    )
