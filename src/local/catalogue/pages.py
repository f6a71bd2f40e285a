"""Pages of the catalogue as blocks, and the two forms they are written in: Markdown and HTML.

Texts may hold `code` and [words](page) links to other pages, nothing else; whatever else looks like
markup is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_INLINE = re.compile(r"`([^`]+)`|\[([^\]]+)\]\(([\w-]+)\)")
_MARKDOWN = re.compile(r"([\\*_<>\[\]|])")
_STYLE = Path(__file__).parent / "style.css"


@dataclass(frozen=True, slots=True)
class Title:
    """A heading below the page's own."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; cells are texts."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Sql:
    """A statement."""

    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG that also stands in a file of its own; `says` is for those who cannot see it."""

    file: str
    svg: str
    says: str


Block = Title | Words | Rows | Sql | Drawing


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `name` is its file's, without an ending; `group` heads it in the navigation."""

    name: str
    title: str
    group: str
    blocks: tuple[Block, ...]


def markdown(page: Page) -> str:
    """The page as Markdown that GitHub shows; a drawing is linked."""
    parts = [f"# {_md(page.title)}", *(_markdown_of(block) for block in page.blocks)]
    if page.name != "index":
        parts.append("[All tables](index.md)")
    return "\n\n".join(parts) + "\n"


def _markdown_of(block: Block) -> str:
    match block:
        case Title(text=text):
            return f"## {_md(text)}"
        case Words(text=text):
            return _md(text)
        case Sql(text=text):
            return f"```sql\n{text}\n```"
        case Drawing(file=file, says=says):
            return f"![{_md(says)}]({file})"
        case Rows(header=header, rows=rows):
            rule = tuple("---" for _ in header)
            cells = [tuple(map(_md, row)) for row in (header, *rows)]
            return "\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:]))


def html(page: Page, pages: Sequence[Page]) -> str:
    """The page as one HTML file that needs no other but its neighbours' names."""
    body = "\n".join(_html_of(block) for block in page.blocks)
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)} · Freshet</title>\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        f"<nav>\n{_navigation(page, pages)}</nav>\n"
        f"<main>\n<h1>{_inline_html(page.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _navigation(page: Page, pages: Sequence[Page]) -> str:
    lines, group = list[str](), ""
    for one in pages:
        if one.group != group:
            group = one.group
            lines.append(f"<h2>{escape(group)}</h2>")
        here = ' aria-current="page"' if one is page else ""
        # A name too long for its line breaks between its words.
        title = escape(one.title).replace("_", "_<wbr>")
        lines.append(f'<a href="{one.name}.html"{here}>{title}</a>')
    return "\n".join(lines) + "\n"


def _html_of(block: Block) -> str:
    match block:
        case Title(text=text):
            anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
            return f'<h2 id="{anchor}">{_inline_html(text)}</h2>'
        case Words(text=text):
            return f"<p>{_inline_html(text)}</p>"
        case Sql(text=text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Drawing(svg=svg, says=says):
            return f'<figure role="img" aria-label="{escape(says)}">\n{svg}</figure>'
        case Rows(header=header, rows=rows):
            heads = "".join(f"<th>{_inline_html(cell)}</th>" for cell in header)
            head = f"<thead><tr>{heads}</tr></thead>\n" if any(header) else ""
            lines = "\n".join(
                "<tr>" + "".join(f"<td>{_inline_html(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return f'<div class="table"><table>\n{head}<tbody>\n{lines}\n</tbody>\n</table></div>'


def _md(text: str) -> str:
    return _inline(
        " ".join(text.split()),
        plain=lambda one: _MARKDOWN.sub(r"\\\1", one),
        code=lambda one: "`" + one.replace("|", "\\|") + "`",
        link=lambda words, page: f"[{words}]({page}.md)",
    )


def _inline_html(text: str) -> str:
    return _inline(
        text,
        plain=escape,
        code=lambda one: f"<code>{escape(one)}</code>",
        link=lambda words, page: f'<a href="{page}.html">{escape(words)}</a>',
    )


def _inline(
    text: str,
    *,
    plain: Callable[[str], str],
    code: Callable[[str], str],
    link: Callable[[str, str], str],
) -> str:
    parts, end = list[str](), 0
    for found in _INLINE.finditer(text):
        parts.append(plain(text[end : found.start()]))
        parts.append(code(found[1]) if found[1] else link(found[2], found[3]))
        end = found.end()
    return "".join([*parts, plain(text[end:])])
