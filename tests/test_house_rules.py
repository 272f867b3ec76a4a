"""The rules of the house as tests: budgets, direction of imports, names, safety, start-up. Every failure names file and line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from covey import recipes
from covey.registry import _REGISTRY, Component, load_extensions

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "covey"

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS, MAX_NESTING, MAX_RECIPE, MAX_LOOP = 400, 60, 7, 3, 40, 40

ORDER = (
    # words that everything is written in
    "errors", "types", "random", "metrics", "registry", "files", "folder", "hub", "config.text", "batch", "protocols",
    # ring one: mathematics, and the methods made of it
    "stages", "recipes", "functional",
    # ring two: what happens between prompts and gradients
    "rewards", "tasks", "columns", "collect", "evaluate", "observe", "context", "gradient", "checkpoint", "loop",
    # ring three: engines
    "models", "engines", "sft", "models.measure", "models.make_tiny",
    # what puts a run together
    "config", "interrupt", "callbacks", "best", "assembly", "canary",
    "saving", "run", "start", "preflight", "target", "chat", "export",
    "proof", "recipes.claims", "cli",
)  # fmt: skip
"""Parts of the package from the inside out: a part imports only what stands before it. The longest name that fits counts."""

UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
UNSAFE_FLAGS = {"trust_remote_code", "shell", "allow_pickle"}


@cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def files(folder: Path = SOURCE) -> list[Path]:
    """The package's Python files."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def at(path: Path, node: ast.AST | int = 1) -> str:
    """`file:line`, to click on."""
    return f"{path.relative_to(ROOT)}:{node if isinstance(node, int) else node.lineno}"  # type: ignore[attr-defined]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file."""
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def no(found: list[str]) -> None:
    """Fail with all findings, one a line."""
    assert not found, "\n" + "\n".join(found)


# Budgets


def test_files_fit_on_a_few_screens() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    no([f"{at(path)}: {n} lines, at most {MAX_FILE}" for path, n in lengths.items() if n > MAX_FILE])
    folder = SOURCE / "recipes"
    own = {path: n for path, n in lengths.items() if path.parent == folder and path.stem in recipe_files()}
    no([f"{at(path)}: {n} lines, a recipe has at most {MAX_RECIPE}" for path, n in own.items() if n > MAX_RECIPE])


def recipe_files() -> set[str]:
    """The files that hold a recipe: the value bears the file's name."""
    stems = {path.stem for path in (SOURCE / "recipes").glob("*.py")} - {"__init__"}
    modules = {stem: import_module(f"covey.recipes.{stem}") for stem in stems}
    return {stem for stem, module in modules.items() if isinstance(getattr(module, stem, None), recipes.Recipe)}


def test_functions_fit_on_one_screen() -> None:
    found = []
    for path in files():
        for node in functions(path):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                found.append(f"{at(path, node)}: {node.name} has {lines} lines, at most {MAX_FUNCTION}")
    no(found)


def test_functions_take_few_parameters() -> None:
    found = []
    for path in files():
        for node in functions(path):
            spec = node.args
            tensors = (
                () if path == SOURCE / "functional.py" else spec.kwonlyargs
            )  # there a parameter is a tensor by name
            names = [a.arg for a in (*spec.posonlyargs, *spec.args, *tensors) if a.arg not in ("self", "cls")]
            typer = (path.parent / path.name).relative_to(SOURCE).parts[0] == "cli"  # there a parameter is an option
            if len(names) > MAX_PARAMETERS and not typer:
                found.append(f"{at(path, node)}: {node.name} takes {len(names)} parameters, at most {MAX_PARAMETERS}")
    no(found)


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def depth(node: ast.AST) -> int:
    """How many blocks stand inside each other below a node; `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        elif_ = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not elif_))
    return deepest


def test_blocks_are_not_nested_deeply() -> None:
    found = [
        f"{at(path, node)}: {node.name} nests {depth(node)} blocks, at most {MAX_NESTING}"
        for path in files()
        for node in functions(path)
        if depth(node) > MAX_NESTING
    ]
    no(found)


def test_the_loop_is_one_screen_and_asks_for_no_option() -> None:
    path = SOURCE / "loop.py"
    trains = [node for node in functions(path) if node.name == "train"]
    assert trains, f"{at(path)}: no function train"
    for node in trains:
        lines = (node.end_lineno or 0) - node.lineno + 1
        assert lines <= MAX_LOOP, f"{at(path, node)}: train has {lines} lines, at most {MAX_LOOP}"
        no([f"{at(path, branch)}: {ast.unparse(branch.test)}" for branch in branches(node) if asks_config(branch.test)])


def branches(node: ast.AST) -> list[ast.If | ast.IfExp | ast.While]:
    """Everything that decides."""
    return [child for child in ast.walk(node) if isinstance(child, (ast.If, ast.IfExp, ast.While))]


def asks_config(test: ast.expr) -> bool:
    """True if a condition reads options rather than events."""
    options = re.compile(r"^(use_.*|config|cfg|settings|options|budget|recipe|engines?|args|method|kind|name)$")
    names = {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(test) if isinstance(n, (ast.Name, ast.Attribute))
    }
    return any(options.match(name) for name in names)


# Direction


def unit(path: Path) -> str:
    """The part of the package that a file belongs to; the file's own name if it has no place in ORDER."""
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return part_of(name) or name


def part_of(name: str) -> str | None:
    """The longest entry of ORDER that a dotted name (without `covey.`) lies in."""
    fits = [part for part in ORDER if f"{name}.".startswith(f"{part}.")]
    return max(fits, key=len, default=None)


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """The parts of the package that a file imports at run time, wherever in the file; not those for type checkers only."""
    checked = {
        id(inner)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(parse(path)):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for part in {part_of(name.removeprefix("covey.")) for name in names if name.startswith("covey.")} - {None}:
            yield part, node


def test_every_part_has_its_place() -> None:
    found = {unit(path) for path in files()} - {"__init__", "__main__"}
    assert found <= set(ORDER), f"say in ORDER where these stand: {sorted(found - set(ORDER))}"


def test_no_relative_imports() -> None:
    nodes = [(path, node) for path in files() for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)]
    no([f"{at(path, node)}: import from covey by its full name" for path, node in nodes if node.level])


def test_nothing_imports_backwards() -> None:
    found = []
    for path in files():
        if (own := unit(path)) not in ORDER:
            continue
        for name, node in imports(path):
            if ORDER.index(name) > ORDER.index(own):
                found.append(f"{at(path, node)}: {own} imports {name}, which stands further out")
    no(found)


def test_the_stages_import_nothing_but_words() -> None:
    allowed = set(ORDER[: ORDER.index("stages") + 1]) - {"files", "protocols", "random"}
    found = [
        f"{at(path, node)}: a stage imports {name}"
        for path in files(SOURCE / "stages")
        for name, node in imports(path)
        if name not in allowed
    ]
    no(found)


# Names


def test_no_method_is_named_outside_its_recipe() -> None:
    """The code is made of stages; a method's name in it would be a branch on the method, or soon become one."""
    known = {re.split(r"[@]", name)[0] for name in recipes.names()} | {"ppo", "rloo", "gspo"}
    variants = {re.sub(r"[_-]", "[-_. ]?", name) for name in known}
    pattern = re.compile(
        rf"(?<![A-Za-z0-9_])({'|'.join(sorted(variants, key=len, reverse=True))})(?![A-Za-z0-9_])", re.I
    )
    kinds_of_text = {".py", ".yaml", ".yml", ".toml", ".jinja", ".html", ".txt"}
    found = []
    for path in sorted(SOURCE.rglob("*")):
        if (
            path.suffix not in kinds_of_text
            or "recipes" in path.relative_to(SOURCE).parts
            or "__pycache__" in path.parts
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{at(path, number)}: '{hit.group()}' in: {line.strip()}" for hit in pattern.finditer(line)]
    no(found)


def test_functions_are_named_by_what_they_do() -> None:
    bad = re.compile(r"^(_?compute_|_?get_|_?do_)|Manager|Helper|[uU]tils|log_?prob")
    found = [
        f"{at(path, node)}: {node.name}"
        for path in files()
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and bad.search(node.name)
    ]
    found += [f"{at(path)}: a file called {path.name}" for path in files() if bad.search(path.stem)]
    no(found)


# Descriptions


def components() -> list[type[Component]]:
    """Every registered component of every stage."""
    for name in ("tasks", "rewards", "columns", "engines"):
        import_module(f"covey.{name}")
    load_extensions()
    return [cls for stage in _REGISTRY.values() for cls in stage.values() if cls.__module__.startswith("covey.")]


def test_every_component_and_option_is_described() -> None:
    found = []
    for cls in components():
        place = f"{cls.__module__}.{cls.__qualname__} ({cls.stage}.{cls.kind})"
        if not (cls.__doc__ or "").strip() or cls.__doc__ == Component.__doc__:
            found.append(f"{place}: no docstring")
        for name, field in cls.model_fields.items():
            if not (field.description or "").strip():
                found.append(f"{place}.{name}: no description")
    no(found)


def test_every_public_name_has_a_docstring() -> None:
    found = []
    for path in files():
        tree = parse(path)
        if path.stat().st_size and not ast.get_docstring(tree):
            found.append(f"{at(path)}: the file says nothing of itself")
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
            if public and not ast.get_docstring(node):  # type: ignore[arg-type]
                found.append(f"{at(path, node)}: {node.name} has no docstring")  # type: ignore[attr-defined]
    no(found)


def test_every_recipe_has_a_page() -> None:
    """The page of a recipe that ships names the papers that its file names."""
    found = []
    for stem in sorted(recipe_files()):
        name = getattr(import_module(f"covey.recipes.{stem}"), stem).name
        page = ROOT / "docs" / "recipes" / f"{name}.md"
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        papers = re.findall(r"arXiv (\d{4}\.\d{5})", recipes.describe(name))
        found += [f"docs/recipes/{name}.md: does not exist"] * (not page.exists())
        found += [f"docs/recipes/{name}.md:1: does not name {paper}" for paper in papers if text and paper not in text]
    no(found)


def test_no_open_ends() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    lines = [(path, n, line) for path in files() for n, line in enumerate(path.read_text().splitlines(), 1)]
    no([f"{at(path, n)}: {line.strip()}" for path, n, line in lines if marks.search(line)])


# Safety


def dotted(node: ast.expr) -> str:
    """`torch.load` of a call's function; '' for anything that is not a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def test_nothing_runs_what_it_reads() -> None:
    """No pickle, no eval, no loader that builds objects, no shell, no code from a model folder."""
    found = []
    for path in files():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                found += [
                    f"{at(path, node)}: import {a.name}" for a in node.names if a.name.split(".")[0] in UNSAFE_IMPORTS
                ]
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_IMPORTS:
                found.append(f"{at(path, node)}: import from {node.module}")
            if isinstance(node, ast.Call):
                found += [f"{at(path, node)}: {reason}" for reason in unsafe(node)]
    no(found)


def unsafe(call: ast.Call) -> Iterator[str]:
    """What is wrong with a call."""
    name = dotted(call.func)
    if name in UNSAFE_CALLS:
        yield f"{name}(...)"
    for word in call.keywords:
        if word.arg in UNSAFE_FLAGS and isinstance(word.value, ast.Constant) and word.value.value is True:
            yield f"{word.arg}=True"


def test_the_stages_do_not_wait_for_the_device() -> None:
    found = [
        f"{at(path, node)}: .item()"
        for path in files(SOURCE / "stages")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "item"
    ]
    no(found)


def test_the_stages_draw_nothing() -> None:
    """Ring one is a function of its inputs: no random numbers, no clock, no files, no printing."""
    banned = re.compile(
        r"^(torch\.(rand|randn|randint|randperm|multinomial|bernoulli|normal|manual_seed)|random\..*|time\..*|print|open|input)$"
    )
    calls = [(p, n) for p in files(SOURCE / "stages") for n in ast.walk(parse(p)) if isinstance(n, ast.Call)]
    no([f"{at(path, node)}: {dotted(node.func)}" for path, node in calls if banned.match(dotted(node.func))])


def tracked() -> list[Path]:
    """Files under version control; none in a plain copy of the source."""
    try:
        out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / name for name in out.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_knows_where_it_was_written() -> None:
    """Neither this checkout's folder nor anyone's home stands in a file."""
    places = {f"{folder}/" for folder in (ROOT, ROOT.parent) if folder != Path(folder.anchor)}
    pattern = re.compile(
        "|".join([*(rf"(?<![\w.]){re.escape(place)}" for place in sorted(places)), r"(?<![\w.])/(home|Users)/\w"])
    )
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{at(path, n)}: {line.strip()[:120]}" for n, line in enumerate(lines, 1) if pattern.search(line)]
    no(found)


# Start-up


def loaded(code: str, *watch: str) -> list[str]:
    """Which of the watched modules a fresh interpreter has loaded after some code."""
    report = f"{code}\nimport sys\nprint('LOADED', *[name for name in {watch!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_importing_covey_is_instant() -> None:
    assert loaded("import covey", "torch", "transformers", "numpy", "pydantic", "jaxtyping", "covey.recipes") == []


@pytest.mark.skipif(not any((SOURCE / "cli").glob("[a-z]*.py")), reason="there are no commands yet")
def test_help_loads_no_mathematics() -> None:
    code = (
        "import sys\nsys.argv = ['covey', '--help']\nfrom covey.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded(code, "torch", "transformers", "jaxtyping", "covey.recipes", "covey.stages") == []
