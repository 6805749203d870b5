"""Makes a checkout ready to be built as a release: what `.github/workflows/release.yml` runs first.

python scripts/release.py v0.2.0 OWNER/NAME

The tag must be the version, and CHANGELOG.md begin with it. PyPI shows README.md without the files beside it: its links and
pictures become addresses of the repository OWNER/NAME on GitHub, at that tag.
"""

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)(\[[^\]]*\])\(([^)\s]+)\)")


def check_version(tag: str, version: str, changelog: str) -> None:
    """Raises ValueError unless the tag is that of the version and the first heading of the changes is the version."""
    if tag != f"v{version}":
        raise ValueError(f"the tag {tag} is not v{version}, the version in src/iltm_anomaly/__init__.py")
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    if headings[:1] != [version]:
        raise ValueError(
            f"CHANGELOG.md begins with {headings[:1]}: what changed stands under a heading '## {version}'"
        )


def with_addresses(text: str, repository: str, tag: str, root: Path) -> str:
    """Markdown with an address in place of each path of a link or picture; code, anchors and addresses stay as they are.

    Raises:
        ValueError: if a path leads to nothing in `root`.
    """

    def replaced(found: re.Match[str]) -> str:
        picture, name, target = found.groups()
        path, *anchor = target.split("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return found[0]
        if not (root / path).exists():
            raise ValueError(f"README.md links to {path}, which is not there")
        place = "https://raw.githubusercontent.com" if picture else "https://github.com"
        where = tag if picture else f"blob/{tag}"
        return f"{picture}{name}({'#'.join([f'{place}/{repository}/{where}/{path}', *anchor])})"

    parts = FENCED.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(replaced, part) for part in parts)


def main() -> None:
    tag, repository = sys.argv[1:]
    source = (REPOSITORY / "src" / "iltm_anomaly" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)[0]
    readme = REPOSITORY / "README.md"
    try:
        check_version(tag, version, (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"))
        text = with_addresses(readme.read_text(encoding="utf-8"), repository, tag, REPOSITORY)
    except ValueError as error:
        sys.exit(str(error))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
