"""A source as its YAML file declares it, checked as far as possible before anything is asked of it.

A declaration is data: models below say what may stand in it, `load_source` reads it and compares it
with the contract of its table. Whatever is wrong is told with file, line and field, all of it at
once. YAML is read by its 1.2 core rules: `no`, `on` and dates are texts, a repeated member is an
error and no tag makes an object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from urllib3.util import parse_url

from api_poller.auth_models import Auth, NoAuth
from api_poller.transport import Limits, place_of
from freshet.contract import Contract, Day, Integer, Registry, Text, Timestamp
from freshet.errors import RejectedError, TerminalError, UnknownTableError
from freshet.tables import TABLES

# Deeper than any declaration; an alias that holds itself ends here.
_DEPTH_MAX = 32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# Where people put credentials; a declaration is no place for them.
_SECRET_HEADERS = frozenset(("authorization", "proxy-authorization", "cookie", "x-api-key"))
_SECRET_PARAMS = frozenset(("api_key", "apikey", "access_token", "client_secret", "password"))
# What strptime reads the same on every platform.
_DIRECTIVES = frozenset("YmdHMSfzbBjyIp%")


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _base_url(value: str) -> str:
    parts = parse_url(value)  # the parser of what connects: no two readings of a host
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("must be a URL as https://host/path")
    if parts.scheme == "http" and parts.host not in _LOOPBACK:
        raise ValueError("must be https, unless the host is this machine")
    if parts.auth:
        raise ValueError("must not hold credentials: declare `auth` and `credentials`")
    if parts.query or parts.fragment:
        raise ValueError("must be a base URL: put the query into `params`")
    return value.rstrip("/")


def _path(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError("must begin with /")
    if "?" in value or "#" in value:
        raise ValueError("must not hold a query: put it into `params`")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", value):
        raise ValueError("must be a host name as api.example.com, without https:// and path")
    return value.lower()


def _headers(value: Mapping[str, str]) -> Mapping[str, str]:
    secret = sorted(name for name in value if name.lower() in _SECRET_HEADERS)
    if secret:
        raise ValueError(f"{secret[0]} is a credential: declare `auth` and `credentials` instead")
    return value


def _params(value: Mapping[str, str]) -> Mapping[str, str]:
    secret = sorted(name for name in value if name.lower() in _SECRET_PARAMS)
    if secret:
        raise ValueError(f"{secret[0]} is a credential: declare `auth` and `credentials` instead")
    return value


def _text_of_number(value: object) -> object:
    """Query parameters are text; `limit: 50` means "50"."""
    whole = isinstance(value, int | Decimal) and not isinstance(value, bool)
    return str(value) if whole else value


def _member(value: str) -> str:
    if value not in ("", ".", "#", "@parent") and any(not step for step in value.split(".")):
        raise ValueError("must be names joined by dots, as category.id or images.0")
    return value


def _records_path(value: str) -> str:
    if value not in ("", ".") and any(not step for step in value.split(".")):
        raise ValueError("must be names joined by dots, as data.items or carts.*.products")
    return value


MemberPath = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_member)]
Parameter = Annotated[str, Field(pattern=r"^[^\s=&#?]{1,128}$")]
ParameterValue = Annotated[str, BeforeValidator(_text_of_number, json_schema_input_type=str | int)]
Scalar = str | bool | int | Decimal
Rows = Annotated[int, Field(ge=1, le=10_000)]


class ColumnMapping(_Declared):
    """Where a column's value comes from: exactly one of `path`, `constant` and `template`.

    A path names members of a record (`category.id`, `images.0`); `^id` is a member of the record
    around it, `#` its position there from 1, `@parent` the parent it was listed for. Values are
    what the contract says or the row is skipped; the other members convert, in their order here.
    """

    path: MemberPath | None = None
    constant: Scalar | None = None
    template: str | None = Field(None, description="Text with {path} in it, as shop-{id}")
    nulls: tuple[str, ...] = Field((), description="Values that mean: none")
    each: MemberPath | None = Field(None, description="Member of each element of a list")
    join: str | None = Field(None, description="Joins the texts of a list, as ', '")
    scale: int | None = Field(None, ge=1, le=12, description="2: the source says cents")
    time_format: tuple[str, ...] = Field(
        (), description="strptime formats, or iso, unix, unix_ms; the first that fits"
    )
    zone: str | None = Field(None, description="IANA zone of times that name none")
    as_: Literal["text", "integer", "flag"] | None = Field(
        None, alias="as", description="text: also of whole numbers; integer, flag: also of text"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> ColumnMapping:
        origins = [self.path, self.constant, self.template]
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("needs exactly one of path, constant and template")
        if self.path is None and (self.each or self.join is not None):
            raise ValueError("`each` and `join` need a path")
        if self.each and self.join is None:
            raise ValueError("`each` makes a list: say how to `join` it")
        for format_ in self.time_format:
            _check_time_format(format_)
        if self.zone is not None:
            _check_zone(self.zone)
        for path in template_paths(self.template or ""):
            _member(path)
        return self

    @property
    def paths(self) -> list[str]:
        """Every path that the value is made of."""
        return [self.path] if self.path else template_paths(self.template or "")


def template_paths(template: str) -> list[str]:
    """The paths that stand as {path} in a template."""
    return _PLACEHOLDER.findall(template)


def _check_time_format(format_: str) -> None:
    if format_ in ("iso", "unix", "unix_ms"):
        return
    directives = re.findall(r"%(.?)", format_)
    if not directives or not set(directives) <= _DIRECTIVES:
        raise ValueError(
            f"{format_!r} is no time format: use iso, unix, unix_ms or strptime's "
            f"directives {' '.join('%' + letter for letter in sorted(_DIRECTIVES))}"
        )


def _check_zone(zone: str) -> None:
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{zone!r} is no time zone: use a name as Europe/Berlin") from None


def _shorthand(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


Mapped = Annotated[
    ColumnMapping, BeforeValidator(_shorthand, json_schema_input_type=str | ColumnMapping)
]


class NoPagination(_Declared):
    """One answer holds everything."""

    kind: Literal["none"] = "none"


class _Paged(_Declared):
    """`total` is the path, `total_header` the header, of how many records there are in all."""

    limit: Parameter | None = Field(None, description="Parameter that takes page_rows")
    page_rows: Rows | None = None
    total: MemberPath | None = None
    total_header: str | None = None

    @model_validator(mode="after")
    def _limit_needs_rows(self) -> _Paged:
        if self.limit is not None and self.page_rows is None:
            raise ValueError("`limit` names the parameter for `page_rows`: give both")
        return self


class _Unproven(_Paged):
    """Pages that cannot tell whether rows moved between them, and so left one out.

    To `confirm` that a row is gone, everything is read again until two listings in a row agree.
    Set it false where the API says that its pages hold still.
    """

    confirm: bool = True


class PagePagination(_Unproven):
    """Numbered pages."""

    kind: Literal["page"]
    page: Parameter = "page"
    first: int = Field(1, ge=0)


class OffsetPagination(_Unproven):
    """An offset and a limit. With `overlap` each page begins with the last row of the one before:
    if that is not there, rows have moved and the listing starts over; `confirm` is for without.
    """

    kind: Literal["offset"]
    offset: Parameter = "offset"
    limit: Parameter = "limit"
    page_rows: Rows = 100
    overlap: bool = True

    @model_validator(mode="after")
    def _room_to_overlap(self) -> OffsetPagination:
        if self.overlap and self.page_rows < 2:
            raise ValueError("pages of one row cannot overlap: raise `page_rows`")
        return self


class CursorPagination(_Unproven):
    """A cursor for the parameter `cursor`: the answer's own (`next`) or a member of the last record
    (`last`). `more` is the path of a flag that is false on the last page.
    """

    kind: Literal["cursor"]
    cursor: Parameter
    next: MemberPath | None = None
    last: MemberPath | None = None
    more: MemberPath | None = None

    @model_validator(mode="after")
    def _one_place(self) -> CursorPagination:
        if (self.next is None) == (self.last is None):
            raise ValueError("needs exactly one of `next` and `last`")
        return self


class NextPagination(_Unproven):
    """The address of the next page stands in the answer at `next`."""

    kind: Literal["next"]
    next: MemberPath


class LinkPagination(_Unproven):
    """The address of the next page stands in the `Link` header, rel="next"."""

    kind: Literal["link"]


class KeysetPagination(_Paged):
    """Records in ascending order of the member `path`, from the value in parameter `after` on.

    `inclusive` says that the server gives that value too. Either way the edge is read again, so
    that equal values across two pages are neither skipped nor told twice. `page_rows` must not be
    more than the server gives at once.
    """

    kind: Literal["keyset"]
    after: Parameter
    path: MemberPath
    inclusive: bool = True
    limit: Parameter = "limit"
    page_rows: Rows = 100


Pagination = Annotated[
    NoPagination
    | PagePagination
    | OffsetPagination
    | CursorPagination
    | NextPagination
    | LinkPagination
    | KeysetPagination,
    Field(discriminator="kind"),
]


class FullSync(_Declared):
    """Every poll lists everything; what is not listed any more is deleted.

    When more than `delete_share_max` (0 to 1) of the known rows vanish at once, none is deleted.
    `keep_rows` says whether rows are remembered whole, for the `before` of their changes;
    undeclared, tables up to 20,000 rows are.
    """

    mode: Literal["full"] = "full"
    # A shop that drops a fifth of its catalogue between two polls is rarer than half a listing.
    delete_share_max: float = Field(0.2, ge=0, le=1)
    keep_rows: bool | None = None


class PeriodParameter(_Declared):
    """A parameter that takes a time; `format` is iso, unix, unix_ms or a strftime format."""

    param: Parameter
    format: str = "iso"

    @model_validator(mode="after")
    def _known_format(self) -> PeriodParameter:
        _check_time_format(self.format)
        return self


class IncrementalSync(_Declared):
    """Polls ask for what is at or after the watermark, the greatest value of column `cursor`.

    `lookback_days` before it are read again, for what comes late; history before the first poll is
    read from `start` on, `window_days` at a time. Nothing is ever deleted for being absent.
    `empty_windows: false` says that a window without rows between windows with rows is a fault.
    `keep_rows` is as in a full sync.
    """

    mode: Literal["incremental"]
    cursor: str
    start: str | int | None = None
    from_: PeriodParameter | None = Field(None, alias="from")
    to: PeriodParameter | None = None
    lookback_days: float = Field(0, ge=0, le=3660)
    window_days: int | None = Field(None, ge=1, le=36_600)
    empty_windows: bool = True
    keep_rows: bool | None = None

    @model_validator(mode="after")
    def _windows_need_bounds(self) -> IncrementalSync:
        if self.window_days is not None and not (self.from_ and self.to and self.start):
            raise ValueError("`window_days` needs `from`, `to` and `start`")
        if self.to is not None and self.from_ is None:
            raise ValueError("`to` needs `from`")
        return self


Sync = Annotated[FullSync | IncrementalSync, Field(discriminator="mode")]


class ParentValues(_Declared):
    """The source is listed once for each value, which stands for {parent} in path and params."""

    values: tuple[ParameterValue, ...] = Field(min_length=1)


class ParentSource(_Declared):
    """The source is listed once for each value in a column of what another source lists."""

    source: str
    column: str


class Deleted(_Declared):
    """A record is deleted where the member `path` equals this, or without `equals` is not null."""

    path: MemberPath
    equals: Scalar | None = None


class Answers(_Declared):
    """What is particular about a source's answers.

    `empty_body`: no body at all stands for no records. `empty_statuses`: so do these statuses, for
    a parent that is gone. `transient_statuses` prove nothing: the next poll asks again.
    """

    empty_body: bool = False
    empty_statuses: frozenset[Annotated[int, Field(ge=400, le=499)]] = frozenset()
    transient_statuses: frozenset[Annotated[int, Field(ge=400, le=499)]] = frozenset()


class SourceDeclaration(_Declared):
    """One source: an API to list, and how its records become rows of one table."""

    table: str = Field(description="The table the rows belong to")
    description: str = ""
    url: Annotated[str, AfterValidator(_base_url)] = Field(
        description="Base address; only its host and `hosts` are ever spoken to"
    )
    hosts: tuple[Annotated[str, AfterValidator(_host)], ...] = ()
    path: Annotated[str, AfterValidator(_path)] = Field("", description="May hold {parent}")
    headers: Annotated[Mapping[str, str], AfterValidator(_headers)] = Field(default_factory=dict)
    params: Annotated[Mapping[Parameter, ParameterValue], AfterValidator(_params)] = Field(
        default_factory=dict, description="Query parameters; values may hold {parent}"
    )
    format: Literal["json", "json_lines", "csv"] = "json"
    delimiter: str = Field(",", min_length=1, max_length=1, description="Of CSV")
    records: Annotated[str, AfterValidator(_records_path)] = Field(
        "",
        description="Path of the list of records; empty: the answer is the list; '.': the answer "
        "is the one record; carts.*.products: the products of each cart",
    )
    auth: Auth = NoAuth()
    pagination: Pagination = NoPagination()
    columns: Mapping[str, Mapped]
    occurred_at: str | None = Field(None, description="Column with the source's time of a change")
    deleted: Deleted | None = None
    where: Mapping[str, Scalar] = Field(
        default_factory=dict, description="Only records whose member equals; lacking it passes"
    )
    unless: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="No records whose member is one of these texts"
    )
    sync: Sync = FullSync()
    parents: ParentValues | ParentSource | None = None
    answers: Answers = Answers()
    limits: Limits = Limits()
    schedule: str | None = Field(None, pattern=r"^(rate|cron)\([^()]+\)$")
    timezone: str = "UTC"
    credentials: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
        description="SHOP: the secret named by SHOP_SECRET_ID, on a laptop SHOP_CREDENTIALS",
    )
    enabled: bool = Field(
        default=True, description="On its schedule; a poll by name works either way"
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> SourceDeclaration:
        _check_zone(self.timezone)
        named = "{parent}" in self.path or any("{parent}" in v for v in self.params.values())
        if named and self.parents is None:
            raise ValueError("{parent} needs `parents`")
        if self.parents is not None and not named:
            raise ValueError("`parents` needs {parent} in `path` or `params`")
        if isinstance(self.sync, IncrementalSync) and not (
            self.sync.from_ or isinstance(self.pagination, KeysetPagination)
        ):
            raise ValueError("an incremental source needs `sync.from` or keyset pagination")
        if self.auth.kind != "none" and self.credentials is None:
            raise ValueError(f"auth {self.auth.kind} needs `credentials`: the name of a reference")
        if self.format != "json" and (self.records or _body_paths(self.pagination)):
            raise ValueError(f"{self.format} has no members around its records: paths need JSON")
        return self

    @property
    def places(self) -> frozenset[str]:
        """The hosts that may be spoken to, as `place_of` writes them."""
        return frozenset((place_of(self.url), *self.hosts))


def _body_paths(pagination: Pagination) -> list[str]:
    """Paths into the answer around its records."""
    named = (getattr(pagination, field, None) for field in ("total", "next", "more"))
    return [path for path in named if path is not None]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a declaration, and where."""

    file: str
    line: int
    field: str
    detail: str

    def __str__(self) -> str:
        """As `sources/shop.yaml:14: columns.price.path: …`."""
        return f"{self.file}:{self.line}: {self.field}: {self.detail}"


class DeclarationError(TerminalError):
    """A source file that cannot be used; `problems` is everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def load_sources(folder: Path, tables: Registry = TABLES) -> dict[str, SourceDeclaration]:
    """Every source declared in `folder`, by name (the file's stem), in order of name.

    Raises `DeclarationError` with the problems of all files.
    """
    found: dict[str, SourceDeclaration] = {}
    problems: list[Problem] = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found[path.stem] = load_source(path, tables)
        except DeclarationError as error:
            problems += error.problems
    if not problems:
        problems += _parent_problems(folder, found, tables)
    if problems:
        raise DeclarationError(tuple(problems))
    return found


def load_source(path: Path, tables: Registry = TABLES) -> SourceDeclaration:
    """The source declared in one file. Raises `DeclarationError`."""
    file = f"{path.parent.name}/{path.name}"
    if not _NAME.fullmatch(path.stem):
        detail = "the name of a source is small letters, digits and _"
        raise DeclarationError((Problem(file, 1, "name", detail),))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DeclarationError((Problem(file, 1, "file", "is not UTF-8 text"),)) from None
    return parse_source(text, file, tables)


def parse_source(text: str, file: str, tables: Registry = TABLES) -> SourceDeclaration:
    """The source declared by a file's text. Raises `DeclarationError`, naming `file`."""
    node = _composed(text, file)
    try:
        declaration = SourceDeclaration.model_validate(_value(node, file))
    except ValidationError as error:
        raise DeclarationError(tuple(_invalid(error, node, file))) from None
    problems = tuple(
        Problem(file, _line(node, loc), ".".join(loc), detail)
        for loc, detail in _misfits(declaration, tables)
    )
    if problems:
        raise DeclarationError(problems)
    return declaration


def json_schema(tables: Registry = TABLES) -> dict[str, Any]:
    """The JSON Schema of a source file, for editors; `src/sources/schema.json` holds it."""
    schema = SourceDeclaration.model_json_schema(by_alias=True)
    schema["properties"]["table"]["enum"] = list(tables.names)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# --- YAML -----------------------------------------------------------------------------------------

_CORE = (
    (re.compile(r"|~|null|Null|NULL"), lambda _: None),
    (re.compile(r"true|True|TRUE"), lambda _: True),
    (re.compile(r"false|False|FALSE"), lambda _: False),
    (re.compile(r"[-+]?[0-9]{1,30}"), int),
    (re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}\.[0-9]{0,30})"), Decimal),
)
# What PyYAML gives to values without a tag of their own.
_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)


def _composed(text: str, file: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        detail = getattr(error, "problem", None) or "cannot be read"
        line = 1 if mark is None else mark.line + 1
        raise DeclarationError((Problem(file, line, "YAML", str(detail)),)) from None
    if not isinstance(node, yaml.MappingNode):
        raise DeclarationError((Problem(file, 1, "YAML", "must be members as `table: …`"),))
    return node


def _value(node: yaml.Node, file: str, depth: int = 0) -> Any:
    """The plain value of a node."""
    if depth > _DEPTH_MAX:
        raise _yaml_error(node, file, "is nested too deeply")
    if node.tag not in _TAGS:
        raise _yaml_error(node, file, f"has the tag {node.tag}; tags have no meaning here")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, file, depth)
    if isinstance(node, yaml.SequenceNode):
        return [_value(part, file, depth + 1) for part in node.value]
    text: str = node.value
    if getattr(node, "style", None) is not None:  # quoted or block: a text
        return text
    return next((make(text) for core, make in _CORE if core.fullmatch(text)), text)


def _mapping(node: yaml.MappingNode, file: str, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _yaml_error(key, file, "must be a name")
        if key.value in made:
            raise _yaml_error(key, file, f"{key.value!r} is there twice")
        made[key.value] = _value(value, file, depth + 1)
    return made


def _yaml_error(node: yaml.Node, file: str, detail: str) -> DeclarationError:
    return DeclarationError((Problem(file, node.start_mark.line + 1, "YAML", detail),))


# Members that hold one of several models: pydantic names the model after them.
_UNIONS = frozenset(("auth", "pagination", "sync", "parents"))


_DETAILS = {"extra_forbidden": "is no member here", "missing": "is required"}


def _invalid(error: ValidationError, node: yaml.Node, file: str) -> Iterator[Problem]:
    """What pydantic found, in the words of the file: without its names of models."""
    for found in error.errors(include_url=False, include_input=False):
        loc = [str(part) for part in found["loc"] if part != "[key]"]
        if len(loc) > 1 and loc[0] in _UNIONS:
            del loc[1]
        detail = _DETAILS.get(found["type"], found["msg"].removeprefix("Value error, "))
        if found["type"].startswith("union_tag"):
            tags = found["ctx"].get("expected_tags") or "one that says what it is"
            detail = f"needs a {found['ctx']['discriminator']} of its own: {tags}"
        yield Problem(file, _line(node, tuple(loc)), ".".join(loc) or "file", detail)


def _line(node: yaml.Node, loc: tuple[str, ...]) -> int:
    """The line of the deepest part of `loc` that is there."""
    line = node.start_mark.line
    for part in loc:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return int(line) + 1


def _child(node: yaml.Node, part: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line, value
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item.start_mark.line, item
    return None


# --- the table ------------------------------------------------------------------------------------

_Misfit = tuple[tuple[str, ...], str]


def _misfits(declaration: SourceDeclaration, tables: Registry) -> Iterator[_Misfit]:
    """Where the declaration does not fit the contract of its table."""
    try:
        contract = tables[declaration.table]
    except UnknownTableError as error:
        yield ("table",), str(error)
        return
    yield from _column_misfits(declaration, contract)
    yield from _place_misfits(declaration)
    if declaration.occurred_at is not None:
        yield from _named_misfits(
            declaration, contract, ("occurred_at",), declaration.occurred_at, (Timestamp, Day)
        )
    if isinstance(declaration.sync, IncrementalSync):
        yield from _cursor_misfits(declaration, declaration.sync, contract)


def _place_misfits(declaration: SourceDeclaration) -> Iterator[_Misfit]:
    """Log-ins at a host that may not be spoken to."""
    auth = declaration.auth
    parts = {name: getattr(auth, name, None) for name in ("login", "refresh", "sign_up")}
    addresses = {("auth", "token_url"): getattr(auth, "token_url", "/")} | {
        ("auth", name, "url"): part.url for name, part in parts.items() if part is not None
    }
    for loc, address in addresses.items():
        if not address.startswith("/") and place_of(address) not in declaration.places:
            yield loc, f"add {place_of(address)} to `hosts`: no other host is spoken to"


def _column_misfits(declaration: SourceDeclaration, contract: type[Contract]) -> Iterator[_Misfit]:
    names = list(contract.model_fields)
    for name, mapping in declaration.columns.items():
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names)}"
            yield ("columns", name), f"table {contract.table} has no such column; {hint}"
            continue
        yield from _mapping_misfits(name, mapping, contract, declaration)
    for name, field in contract.model_fields.items():
        if field.is_required() and name not in declaration.columns:
            role = "is part of the merge key" if name in contract.key else "is required"
            yield ("columns",), f"column {name} {role} in table {contract.table}: map it"


# Why no source is listed for each value of a column that is personal data.
NO_PARENT = "is personal data: a parent's value stands in addresses, which are logged"


def _parent_value_misfits(
    name: str, contract: type[Contract], declaration: SourceDeclaration
) -> Iterator[_Misfit]:
    if declaration.parents is None:
        yield ("columns", name), "@parent needs `parents`"
    if contract.column(name).pii:
        yield ("columns", name), f"column {name} {NO_PARENT}"


def _mapping_misfits(
    name: str,
    mapping: ColumnMapping,
    contract: type[Contract],
    declaration: SourceDeclaration,
) -> Iterator[_Misfit]:
    kind = contract.column(name).type
    if mapping.constant is not None:
        try:
            contract.parse_value(name, mapping.constant)
        except RejectedError as error:
            yield ("columns", name, "constant"), f"{error.reason}: {error.detail}"
    if mapping.time_format and not isinstance(kind, Timestamp | Day):
        yield ("columns", name, "time_format"), "is for columns that hold a time or a day"
    if isinstance(kind, Timestamp) and mapping.zone is None:
        for format_ in mapping.time_format:
            if "%" in format_ and "%z" not in format_:
                yield ("columns", name, "time_format"), f"{format_!r} names no zone: add `zone`"
    for path in mapping.paths:
        if path == "@parent":
            yield from _parent_value_misfits(name, contract, declaration)
        if path.startswith("^") and path.count("^") > declaration.records.count("*"):
            yield ("columns", name), f"{path}: there is no record around it in `records`"


def _named_misfits(
    declaration: SourceDeclaration,
    contract: type[Contract],
    loc: tuple[str, ...],
    column: str,
    kinds: tuple[type, ...],
) -> Iterator[_Misfit]:
    if column not in contract.model_fields:
        yield loc, f"table {contract.table} has no column {column}"
    elif column not in declaration.columns:
        yield loc, f"column {column} is not mapped in `columns`"
    elif not isinstance(contract.column(column).type, kinds):
        yield loc, f"column {column} is of the wrong type for that"


def _cursor_misfits(
    declaration: SourceDeclaration, sync: IncrementalSync, contract: type[Contract]
) -> Iterator[_Misfit]:
    misfits = list(
        _named_misfits(
            declaration,
            contract,
            ("sync", "cursor"),
            sync.cursor,
            (Timestamp, Day, Integer, Text),
        )
    )
    yield from misfits
    if misfits:
        return
    if contract.column(sync.cursor).pii:
        detail = f"column {sync.cursor} is personal data: hashes have no order to read on from"
        yield ("sync", "cursor"), detail
    timed = isinstance(contract.column(sync.cursor).type, Timestamp | Day)
    if not timed and (sync.window_days or sync.lookback_days):
        yield ("sync",), "`window_days` and `lookback_days` need a cursor that is a time or a day"
    if sync.start is not None:
        try:
            contract.parse_value(sync.cursor, start_value(sync, contract))
        except RejectedError as error:
            yield ("sync", "start"), f"{error.reason}: {error.detail}"


def start_value(sync: IncrementalSync, contract: type[Contract]) -> str | int | None:
    """`start` as the cursor's column takes it: a day stands for its midnight in UTC."""
    timestamp = isinstance(contract.column(sync.cursor).type, Timestamp)
    if timestamp and isinstance(sync.start, str) and len(sync.start) == len("2026-11-21"):
        return f"{sync.start}T00:00:00Z"
    return sync.start


def _parent_problems(
    folder: Path, found: Mapping[str, SourceDeclaration], tables: Registry
) -> Iterator[Problem]:
    """Parents that are no source, lack the column, or go round in a circle."""
    for name, declaration in found.items():
        if isinstance(declaration.parents, ParentSource):
            detail = _parent_misfit(name, declaration.parents, found, tables)
            if detail:
                path = folder / f"{name}.yaml"
                file = f"{folder.name}/{path.name}"
                node = _composed(path.read_text(encoding="utf-8"), file)
                yield Problem(file, _line(node, ("parents",)), "parents", detail)


def _parent_misfit(
    name: str,
    parents: ParentSource,
    found: Mapping[str, SourceDeclaration],
    tables: Registry,
) -> str | None:
    if parents.source not in found:
        return f"there is no source {parents.source!r}; sources: {', '.join(found)}"
    if parents.column not in tables[found[parents.source].table].model_fields:
        return f"table {found[parents.source].table} has no column {parents.column}"
    if tables[found[parents.source].table].column(parents.column).pii:
        return f"column {parents.column} {NO_PARENT}"
    above: ParentSource | None = parents
    for _ in found:
        if above is None:
            return None
        if above.source == name:
            return "its parents come from itself"
        next_ = found[above.source].parents if above.source in found else None
        above = next_ if isinstance(next_, ParentSource) else None
    return None
