"""Which patterns a path falls under, and what the application itself calls that path.

Patterns are what a user writes, templates are what the framework routes by; both lie in one tree of segments that is
walked once per path. Methods are compared by the caller, who keeps one answer per path.

To protect and to exempt are different questions. Servers and frameworks disagree about repeated slashes, dot segments
and what may trail a path, so a path is looked up in every form that one of them might serve and falls under the
patterns of all. To exempt is safe only where the answer is *exact*: there is one form, and it is the one that was sent.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import unquote

from usagekeeper.errors import ConfigurationError

_TRAILING: Final = "/ \x7f" + "".join(map(chr, range(32)))
_SLASHES: Final = re.compile("//+")
_ORIGIN: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/]*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def canonical(path: str) -> str:
    """The decoded *path* with one slash where several stood, and nothing that servers drop from its ends.

    Dot segments stay, because frameworks take them literally; so do `;` and `#`, which are plain text once decoded.
    """
    if "//" not in path and path[:1] == "/" and "/" < path[-1] != "\x7f":  # _TRAILING has nothing else above "/"
        return path
    if not path.startswith("/"):
        origin = _ORIGIN.match(path)
        path = "/" + (path[origin.end() :] if origin else path)
    return _SLASHES.sub("/", path).rstrip(_TRAILING) or "/"


def _resolved(path: str) -> str:
    """A canonical *path* as a file system reads it."""
    kept: list[str] = []
    for segment in path[1:].split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One segment: any text, or what *fits* matches in full."""

    name: str | None = None
    fits: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Rest:
    """Everything from here on: any text, or what *fits* matches in full."""

    fits: re.Pattern[str] | None = None


Segment = str | Parameter | Rest


def _positions(segments: Sequence[Segment]) -> dict[str, int]:
    return {part.name: at for at, part in enumerate(segments, 1) if isinstance(part, Parameter) and part.name}


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path pattern as a user writes them: `Route("GET", "/api/{id}")`."""

    method: str
    pattern: str

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not _METHOD.fullmatch(self.method):
            raise ConfigurationError(
                f'a method is one word such as "GET", or "*" for any, not {self.method!r}: one route for each'
            )
        _compile(self.pattern)
        object.__setattr__(self, "method", self.method.upper())
        object.__setattr__(self, "pattern", self.pattern.rstrip("/") or "/")

    @classmethod
    def parse(cls, value: Route | str | Mapping[str, str]) -> Route:
        """Read `{"method": "GET", "url": "/api/*"}`, `"GET /api/*"`, `"/api/*"` or `"*"`."""
        if isinstance(value, Route):
            return value
        if isinstance(value, str):
            method, _, url = value.strip().partition(" ")
            return cls("*", value.strip()) if not url or method.startswith("/") else cls(method, url.strip())
        if not isinstance(value, Mapping) or "url" not in value or value.keys() - {"method", "url"}:
            raise ConfigurationError(
                f'{value!r} is not a route: write {{"method": "GET", "url": "/api/*"}}, "GET /api/*" or "/api/*"'
            )
        return cls(value.get("method", "*"), value["url"])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The pattern in parts."""
        return _compile(self.pattern)

    @property
    def parameters(self) -> dict[str, int]:
        """Where each named segment stands in `canonical(path).split("/")`."""
        return _positions(self.segments)

    def covers(self, method: str) -> bool:
        """Whether *method* is meant. What is said of GET holds for HEAD, which runs the same code."""
        method = method.upper()  # Werkzeug does the same
        return self.method in ("*", method) or (method == "HEAD" and self.method == "GET")


def specific(route: Route) -> tuple[tuple[int, ...], bool, str]:
    """Sorts the most specific of several matching routes first: text, then `{name}`, then `/*`, then `*`."""
    ranks = [0 if isinstance(part, str) else 1 if isinstance(part, Parameter) else 3 for part in route.segments]
    return ((4,) if route.pattern == "*" else (*ranks, 2)), route.method == "*", route.pattern


_METHOD: Final = re.compile(r"\*|[A-Za-z][A-Za-z0-9_-]*")
_NAMED: Final = re.compile(r":([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\}", re.ASCII)
_MARKED: Final = re.compile(r"[*{}<>]|^:")
_SPANNING: Final = re.compile(r"[^*]*\*|.*[:<]path\b.*")
_CALLED: Final = re.compile(r"\{([A-Za-z_]\w*)|([A-Za-z_]\w*)>")
_SEVERAL: Final = re.compile(r"[,;\s]+(?:[A-Za-z]+\s+)?(?=/)")
_METHOD_LAST: Final = re.compile(r"(/\S*)\s+(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|QUERY)")
_REGEX: Final = re.compile(r"\^.*|.*\.\*.*", re.DOTALL)
_OF_REGEXES: Final = re.compile(r"[][(){}\\.*+?$^|]")
_NEVER: Final = (
    (re.compile("[?#].*"), "has a query string or a fragment, and only paths are compared"),
    (_CONTROL, "has a control character"),
)


def _compile(pattern: str) -> tuple[Segment, ...]:
    if not isinstance(pattern, str) or not pattern:
        raise ConfigurationError(f'a path pattern is text such as "/api/*", or "*" for everything, not {pattern!r}')
    if pattern == "*":
        return (Rest(),)
    _check(pattern)
    texts = pattern.removesuffix("/").split("/")
    found = [_segment(pattern, text) for text in texts]
    if texts[0]:
        raise _wrong(pattern, "does not begin with a slash", canonical(pattern))
    names = [part.name for part in found if isinstance(part, Parameter) and part.name]
    if len({*names}) < len(names):
        raise ConfigurationError(f"the pattern {pattern!r} has two parameters of one name: rename one of them")
    if texts[-1] == "*":
        if pattern.endswith("/"):
            raise _wrong(pattern, "has a slash after its last *", pattern[:-1])
        found[-1] = Rest()
    return tuple(found[1:])


def _check(pattern: str) -> None:
    """Refuse what no canonical path can equal, and what was meant as several."""
    if found := _SEVERAL.search(pattern):
        raise ConfigurationError(
            f'the pattern {pattern!r} looks like several: give each an entry of its own, as in ["GET /a", "/b"],'
            f" instead of {found[0]!r} between them"
        )
    if turned := _METHOD_LAST.fullmatch(pattern):
        raise _wrong(pattern, "has its method last", f"{turned[2]} {turned[1]}")
    if _REGEX.fullmatch(pattern):
        plain = pattern.removeprefix("^").removesuffix("$")
        head, *rest = _OF_REGEXES.split(plain, maxsplit=1)
        better = canonical(f"{head.rstrip('/')}/*" if rest else head)
        raise _wrong(pattern, "is a regular expression, and patterns are none", better)
    for regex, fault in _NEVER:
        if regex.search(pattern):
            raise _wrong(pattern, fault, canonical(regex.sub("", pattern)))
    if re.search("%[0-9A-Fa-f]{2}", pattern):
        better = canonical(unquote(pattern))
        raise _wrong(pattern, "is percent-encoded, and paths are compared decoded", better)
    clean = _resolved(canonical(pattern))
    if "//" in pattern or (pattern.startswith("/") and pattern not in (clean, clean + "/")):
        raise _wrong(pattern, "has what never reaches an application", clean)


def _segment(pattern: str, text: str) -> Segment:
    if named := _NAMED.fullmatch(text):
        return Parameter(named[1] or named[2])
    if text == "*":
        return Parameter()
    if not _MARKED.search(text):
        return text
    if _SPANNING.fullmatch(text):
        better = pattern[: pattern.index(text)] + (f"{text[:-1]}/*" if text.endswith("*") else "*")
    else:
        called = _CALLED.search(text)
        better = pattern.replace(text, f"{{{called[1] or called[2]}}}" if called else "*", 1)
    raise _wrong(pattern, f"has {text!r}, which is neither plain text nor a parameter", canonical(better))


def _wrong(pattern: str, fault: str, better: str) -> ConfigurationError:
    return ConfigurationError(
        f"the pattern {pattern!r} {fault}: write {better!r}"
        " ('*' and '{name}' are one whole segment, '/*' at the end is everything below)"
    )


class Converter(NamedTuple):
    """A parameter as frameworks have it; *spans* if its regex may match slashes."""

    name: str
    regex: str
    spans: bool


Piece = str | Converter
"""A run of a template's text, or a parameter in it."""

_PLAIN: Final = (".*", "[^/]+", "[^/]{1,}")
"""Regexes of Starlette's and Werkzeug's parameters that take any text."""


@dataclass(frozen=True, slots=True)
class Template:
    """One route of the framework's own table; *label* is the framework's own text."""

    label: str
    methods: frozenset[str] | None
    """None is any."""
    segments: tuple[Segment, ...]
    slash: bool | None = None
    """Whether the path has to end with a slash; None where either will do."""
    mounted: int | None = None
    """A mount keeps all that begins like it, whatever the method: so many templates before it are its own."""
    socket: bool | None = False
    """Whether the route is for WebSockets; None is either."""
    newline: bool = False
    """The framework's regexes end in `$`, which forgives a newline at the end of a path."""

    @property
    def parameters(self) -> dict[str, int]:
        """Where each parameter that is a whole segment stands in `canonical(path).split("/")`."""
        return _positions(self.segments)


def between_slashes(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The *pieces* between slashes; a part with a parameter that spans slashes keeps all that follows."""
    rows: list[list[Piece]] = [[]]
    for piece in pieces:
        if isinstance(piece, Converter) or any(isinstance(known, Converter) and known.spans for known in rows[-1]):
            rows[-1].append(piece)
        else:
            first, *others = piece.split("/")
            rows[-1] += [first] if first else []
            rows += [[text] if text else [] for text in others]
    return rows[1:] if rows[-1] else rows[1:-1]


def segments_of(pieces: Sequence[Piece], end: str = "") -> tuple[Segment, ...]:
    """The segments of a template; *end* is a regex for what may follow a parameter that spans slashes."""
    return tuple(_part(row, end) for row in between_slashes(pieces))


def _part(row: list[Piece], end: str) -> Segment:
    converters = [piece for piece in row if isinstance(piece, Converter)]
    if not converters:
        return "".join(map(str, row))
    spans = any(converter.spans for converter in converters)
    name, regex, _ = converters[0]
    if len(row) == 1 and regex in _PLAIN:
        return Rest() if spans else Parameter(name)
    regex = "".join(f"(?:{piece.regex})" if isinstance(piece, Converter) else re.escape(piece) for piece in row)
    return Rest(re.compile(regex + end)) if spans else Parameter(name if len(row) == 1 else None, re.compile(regex))


class Match(NamedTuple):
    """Where a path belongs."""

    exact: bool
    """The path was sent in its canonical form, and no server reads it differently: it may be exempt."""
    entries: tuple[int, ...]
    """Every entry whose pattern matches, in order of declaration; methods are not compared."""
    templates: tuple[int, ...]
    """Every template whose path matches, in the order in which the framework tries them."""


class _Node:
    """What may follow a run of segments. Numbers are those of entries, then of templates."""

    __slots__ = ("anything", "asked", "below", "checked", "ends", "slashed", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, _Node] = {}
        self.anything: _Node | None = None
        self.checked: dict[re.Pattern[str], _Node] = {}
        self.below: list[int] = []
        self.asked: list[tuple[int, re.Pattern[str]]] = []
        self.ends: list[int] = []
        self.slashed: list[int] = []


class RouteTable:
    """Patterns and templates, compiled. Neither number nor order of the patterns changes the cost or the answer."""

    def __init__(self, entries: Sequence[Route], templates: Sequence[Template] = ()) -> None:
        self.entries = tuple(entries)
        self.templates = tuple(templates)
        self._first = len(self.entries)
        self._stops = {at for at, template in enumerate(templates, self._first) if template.mounted is not None}
        self._newline = any(template.newline for template in templates)
        self._root = _Node()
        self._answers: dict[tuple[int, ...], Match] = {}
        self._known: dict[str, Match] = {}
        rows = [(entry.segments, None) for entry in entries] + [(t.segments, t.slash) for t in templates]
        self._depth = max((len(parts) for parts, _ in rows), default=0)
        for number, (parts, slash) in enumerate(rows):
            self._add(number, parts, slash)
        literal = {"/" + "/".join(map(str, parts)) for parts, _ in rows if all(isinstance(p, str) for p in parts)}
        self._known = {path: self.match(path) for path in literal if canonical(path) == path}

    def match(self, path: str, root: str = "") -> Match:
        """Where the decoded *path* belongs, as the server handed it over, less the *root* that it is below.

        An application under a root (root_path, SCRIPT_NAME) is watched by patterns with and without that prefix; its
        templates, and the positions of their parameters, are without. A star before the root says that the path holds
        it, but not in front: frameworks differ in what they serve then, so patterns hold for all of that.
        """
        if root:
            return self._match_beside(root[1:], path) if root[0] == "*" else self._match_below(root.rstrip("/"), path)
        known = self._known.get(path)
        if known is not None:
            return known
        clean = canonical(path)
        if clean != path or "/." in path or not path.isprintable():
            return self._match_odd(path, clean)
        found = self._find(path)
        if self.templates and (not found or found[-1] < self._first):
            found += [number for number in self._find(path + "/") if number >= self._first]
        answer = self._answers.get(numbers := tuple(found))
        if answer is None:
            answer = self._answer(numbers, exact=True)
            if len(self._answers) < _ANSWERS:
                self._answers[numbers] = answer
        return answer

    def served(self, match: Match, *, socket: bool = False) -> list[Template]:
        """The templates of *match* that are for requests, or for WebSockets."""
        return [template for at in match.templates if (template := self.templates[at]).socket in (None, socket)]

    def label(self, match: Match, method: str, *, socket: bool = False) -> str | None:
        """The template that the framework picks for *method*: a full match, else the first of the path alone."""
        templates = self.served(match, socket=socket)
        for template in templates:
            if template.methods is None or method in template.methods:
                return template.label
        if not templates:
            return None
        last = match.templates[-1]
        own = self.templates[last].mounted
        found = (at for at in match.templates if own is None or at >= last - own)
        return next((self.templates[at].label for at in found if self.templates[at] in templates), None)

    def _match_below(self, root: str, path: str) -> Match:
        whole, local = self.match(root + path), self.match(path)
        return Match(local.exact, tuple(sorted({*whole.entries, *local.entries})), local.templates)

    def _match_beside(self, root: str, path: str) -> Match:
        local, rest = self._match_below(root.rstrip("/"), path), self.match("/" + path.partition(root)[2])
        return Match(False, tuple(sorted({*local.entries, *rest.entries})), local.templates)

    def _match_odd(self, path: str, clean: str) -> Match:
        """The union over every form of the path; templates match the first form that the framework would know."""
        resolved = _resolved(clean)
        forgiven = self._newline and path.endswith("\n")
        sent = [path, path[:-1]] if forgiven else [path]
        merged = _SLASHES.sub("/", path)
        entries: set[int] = set()
        chosen: list[int] = []
        for forms in (sent, ["/" + path.lstrip("/")], [merged], [clean], [clean + "/"], [resolved]):
            found = sorted({number for form in forms if form.startswith("/") for number in self._find(form)})
            cut = bisect_left(found, self._first)
            entries.update(found[:cut])
            chosen = chosen or found[cut:]
        if forgiven and not self._stops.isdisjoint(chosen):  # Starlette's mounts then pass on the wrong part of it
            entries.update(range(self._first))
        exact = path == clean == resolved and not _CONTROL.search(path)
        return self._answer((*sorted(entries), *chosen), exact=exact)

    def _answer(self, numbers: tuple[int, ...], *, exact: bool) -> Match:
        cut = bisect_left(numbers, self._first)
        stop = next((at for at, number in enumerate(numbers, 1) if number in self._stops), None)
        return Match(exact, numbers[:cut], tuple(number - self._first for number in numbers[cut:stop]))

    def _add(self, number: int, parts: tuple[Segment, ...], slash: bool | None) -> None:
        node = self._root
        for part in parts:
            if isinstance(part, str):
                node = node.texts.setdefault(part, _Node())
            elif isinstance(part, Rest):
                if part.fits:
                    node.asked.append((number, part.fits))
                    return
                node.below.append(number)
                slash = None if slash is None else True  # a prefix alone is what the framework redirects
            elif part.fits:
                node = node.checked.setdefault(part.fits, _Node())
            else:
                node.anything = node = node.anything or _Node()
        if slash is not True or node is self._root:
            node.ends.append(number)
        if slash is not False:
            node.slashed.append(number)

    def _find(self, form: str) -> list[int]:
        """The numbers of all that match one *form* of a path: each node that fits is visited once."""
        slashed = len(form) > 1 and form[-1] == "/"
        text = form[1:-1] if slashed else form[1:]
        pieces = text.split("/", self._depth) if len(form) > 1 else []  # no pattern looks deeper
        found: list[int] = []
        waiting: list[tuple[_Node, int]] = []
        node, at = self._root, 0
        while True:
            for piece in pieces[at:] if at else pieces:
                at += 1
                if node.below:
                    found += node.below
                if node.asked:
                    rest = "/".join(pieces[at - 1 :]) + "/" * slashed
                    found += [number for number, fits in node.asked if _fits(fits, rest)]
                heir = node.texts.get(piece)
                if node.anything is not None and piece:
                    if heir is not None:
                        waiting.append((heir, at))
                    heir = node.anything
                if node.checked and piece:
                    waiting += [(other, at) for fits, other in node.checked.items() if _fits(fits, piece)]
                if heir is None:
                    break
                node = heir
            else:
                found += node.slashed if slashed else node.ends
            if not waiting:
                break
            node, at = waiting.pop()
        found.sort()
        return found


_ANSWERS: Final = 4096
"""Equal answers are one object, up to this many: callers keep one per path."""
_LONGEST: Final = 2048
"""Converters are asked about this many characters at most: a few of their regexes take more than linear time."""


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= _LONGEST and pattern.fullmatch(text) is not None
