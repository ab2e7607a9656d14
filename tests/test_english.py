"""Docstrings in plain English: sentences that begin with a verb or an article, entries that stand alone."""

import ast
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("embcomp", "recsys_models", "data", "experiments")

ARTICLES = {"The", "A", "An"}
# First words that make a fragment or a riddle of what follows.
FRAGMENT = re.compile(
    r"What|Which|How|Why|Whether|When|Where|Who|Whose|Whom|That|Those|These|This|It|Its|If|As|Of|In|On|At|By|For|"
    r"From|To|With|Without|Into|Inside|Than|Then|So|Not|No|None|Nothing|Each|Every|Everything|Both|Either|Neither|"
    r"Some|Any|Many|Most|First|Second|Last|Next|Only|Also|Otherwise|Else|Like|Because|Since|While|Before|After"
)
# Verbs in the third person; function docstrings are imperative, and classes are things.
THIRD_PERSON = re.compile(
    r"Adds|Applies|Asks|Assigns|Builds|Calls|Carries|Checks|Chooses|Combines|Compares|Computes|Converts|Counts|"
    r"Cuts|Decodes|Divides|Does|Draws|Encodes|Fills|Finds|Fits|Gives|Goes|Groups|Has|Holds|Is|Iterates|Joins|"
    r"Keeps|Leaves|Looks|Loads|Makes|Maps|Marks|Moves|Names|Notes|Opens|Packs|Picks|Pools|Prints|Puts|Quantises|"
    r"Raises|Ranks|Reads|Registers|Replaces|Restores|Returns|Runs|Samples|Saves|Says|Scales|Selects|Sends|Sets|"
    r"Shares|Shows|Shuffles|Sorts|Splits|Stores|Swaps|Takes|Tells|Tests|Trains|Tries|Turns|Unpacks|Updates|Wraps|"
    r"Writes|Yields"
)
IN_S = {"Pass", "Compress", "Process", "Address", "Express", "Press"}  # verbs that end in s
IN_ED = {"Embed", "Feed", "Need", "Seed", "Shed", "Speed", "String"}  # verbs that end in ed or ing
# First words of entries that do not stand alone.
OPEN_ENTRY = re.compile(r"of|that|which|what|how|why|as|whose|who|whom|where|when|for|than|because", re.IGNORECASE)
RESULTS = ("Returns", "Yields")
SECTIONS = re.compile(r"^(Args|Attributes|Raises|Yields|Returns):$")
PROPER = re.compile(r"[A-Z](\b|[A-Z0-9]|[a-z]+[A-Z])|True|False|None")


def _documented(tree: ast.Module) -> Iterator[tuple[str, int, str, str]]:
    """Kind, line, name and docstring of the module, and of each class, function and property, private ones too."""
    if text := ast.get_docstring(tree):
        yield "module", 1, "", text
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, parent = waiting.pop()
        for node in getattr(parent, "body", []):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            name = f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                kind = "class"
                waiting.append((f"{name}.", node))
            else:
                kind = "property" if any("property" in ast.unparse(d) for d in node.decorator_list) else "function"
            if text := ast.get_docstring(node):
                yield kind, node.lineno, name, text


def _fault_of_summary(kind: str, text: str) -> str | None:
    first, second = [*text.split(None, 2), "", ""][:2]
    word = first.rstrip(".,:;")
    if FRAGMENT.fullmatch(word):
        return f"begins with {word!r}"
    if THIRD_PERSON.fullmatch(word):
        return f"begins with {word!r}, in the third person"
    if not text.split("\n\n")[0].rstrip().endswith((".", "?", ":", "!")):
        return "its first paragraph has no full stop"
    if kind == "property" and word == "Return":
        return "begins with 'Return', though it is read like an attribute"
    if kind != "function" or word in ARTICLES:
        return None
    if not re.fullmatch(r"[A-Z][a-z]+(-[a-z]+)?", word):
        return f"begins with {first!r}, which is not a verb"
    if (word.endswith("s") and word not in IN_S) or (word.endswith(("ed", "ing")) and word not in IN_ED):
        return f"begins with {word!r}, which is not an imperative"
    if second == "of":
        return f"begins with '{word} of', which is not a verb"
    return None


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """Name and text of each entry in the sections of a docstring; a result has no name."""
    section, entry = "", ""
    for line in [*text.splitlines(), ""]:
        follows = line.startswith("    " if section in RESULTS else "        ")
        if entry and not follows:
            name, colon, rest = entry.partition(": ")
            yield (name, rest) if colon and section not in RESULTS else ("result", entry)
            entry = ""
        if match := SECTIONS.match(line):
            section = match[1]
        elif line and not line.startswith(" "):
            section = ""
        elif section and line.strip():
            entry = f"{entry} {line.strip()}".strip()


def _faults_of_entries(text: str) -> Iterator[str]:
    for name, entry in _entries(text):
        words = entry.split()
        if not words:
            yield f"{name}: has no text"
            continue
        if OPEN_ENTRY.fullmatch(words[0].rstrip(",")):
            yield f"{name}: begins with {words[0]!r}"
        if name != "result" and words[0][0].isupper() and not PROPER.match(words[0]):
            yield f"{name}: begins with the capital of {words[0]!r}"
        if not entry.endswith((".", ":", "`", "?")):
            yield f"{name}: has no full stop"


def _faults_of(kind: str, text: str) -> list[str]:
    summary = _fault_of_summary(kind, text)
    return [*([summary] if summary else []), *_faults_of_entries(text)]


def _faults() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            source = path.read_text()
            for kind, line, name, text in _documented(ast.parse(source)):
                where = f"{path.relative_to(ROOT)}:{line}: {name or kind}"
                yield from (f"{where}: {fault}" for fault in _faults_of(kind, text))


# Docstrings that this project once had.
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("function", "What pyarrow says of a file that it cannot read does not name it."),
        ("function", "As `GraphHash.for_budget`, which see."),
        ("function", "Whether id 0 stands for values outside the vocabulary."),
        ("function", "Number of batches that an iteration yields."),
        ("function", "Loads the data."),
        ("function", "`hash_strings` of the values as strings."),
        ("property", "Whether the rows are poolings."),
        ("property", "Return the rows."),
        ("class", "Writes frames as record batches."),
        ("module", "Where the published data sets are"),
        ("class", "A window.\n\nArgs:\n    label: of the data.\n"),
        ("class", "A window.\n\nArgs:\n    label: Name in tables.\n"),
        ("function", "Read it.\n\nRaises:\n    ValueError: which sizes do not\n        fit.\n"),
        ("function", "Read it.\n\nReturns:\n    What the rows are.\n"),
    ],
)
def test_fragments_are_found(kind: str, text: str) -> None:
    assert _faults_of(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("function", "Return the rows.\n\nArgs:\n    ids: the ids, int64\n        [n].\n\nReturns:\n    The rows.\n"),
        ("function", "Pass the rows on."),
        ("property", "True if rows are left."),
        ("class", "The rows of a window."),
    ],
)
def test_plain_sentences_are_left_alone(kind: str, text: str) -> None:
    assert not _faults_of(kind, text)


def test_docstrings_are_plain_sentences() -> None:
    assert list(_faults()) == []


def test_behavior_is_spelled_in_one_way() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    sources = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")]
    other = "behavi" + "our"
    assert [str(path) for path in [*pages, *sources] if other in path.read_text().lower()] == []


def _examples(text: str) -> Iterator[tuple[Callable[[str], object], str]]:
    """The paragraphs of a docstring that are a file of TOML or of Python, with what reads them."""
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", text + "\n", re.MULTILINE):
        code = textwrap.dedent(block.strip("\n"))
        if re.match(r"\[|\w+ = |# \w+\.py\n", code):
            read = ast.parse if code.startswith("#") else tomllib.loads
            yield from ((read, part) for part in code.split("\n\n") if not part.startswith("python -m "))


def test_examples_of_files_can_be_read() -> None:
    """A formatter that joins their lines leaves something else."""
    documented = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    texts = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in documented]
    examples = [example for text in texts for example in _examples(text)]
    assert len(examples) >= 9
    for read, code in examples:
        read(code)
