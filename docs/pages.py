"""What the site adds to docs/: README.md as its front, and links that hold there as they do in the repository.

A hook of MkDocs (``hooks`` in mkdocs.yml). A link from a page to another leads there; one to a file that is no page,
such as source code, becomes its text.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
"""Pages that lie beside docs/, and what they are called on the site."""
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie beside docs/."""
    for name, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, content=(PROJECT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page."""
    return turned(markdown, PROJECT if page.file.src_uri in OUTSIDE.values() else DOCS)


def turned(markdown: str, folder: Path) -> str:
    """Links as they hold in ``folder`` of the repository, as they hold on the site."""

    def turn(link: re.Match[str]) -> str:
        mark, text, address = link.groups()
        path, hash_, anchor = address.partition("#")
        if not path or re.match(r"[a-z]+:", address):
            return link[0]
        target = (folder / path).resolve()
        if (name := str(target.relative_to(PROJECT))) in OUTSIDE:
            return f"{mark}[{text}]({OUTSIDE[name]}{hash_}{anchor})"
        if target.is_relative_to(DOCS):
            return f"{mark}[{text}]({target.relative_to(DOCS)}{hash_}{anchor})"
        return str(text)

    return LINK.sub(turn, markdown)
