"""One HTML document with its styles and scripts inside, and the headers under which a browser runs nothing but those.

A page's parts stand beside it as files. Where its HTML says `<!-- style: base.css playground/style.css -->` or
`<!-- script: base.js playground/app.js -->`, their contents are put in, in that order, as one `<style>` or one module. The
Content-Security-Policy names both by their hashes, so whatever else gets into the document does not run (CSP Level 3, 2.3.1).
"""

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent
_PART = re.compile(r"<!-- (style|script): ([^>]+) -->")
_TAGS = {"style": ("<style>", "</style>"), "script": ('<script type="module">', "</script>")}
_ENDING = re.compile(r"</(?:style|script)", re.IGNORECASE)
_GZIP = re.compile(r"(?:^|,)\s*gzip\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[^,]*)?(?:,|$)", re.IGNORECASE)
# The page asks the server that it came from, and nothing else; strings never become HTML (Trusted Types).
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """A document that is ready to be sent, plain and compressed."""

    plain: bytes
    packed: bytes
    headers: Mapping[str, str]

    def response(self, asked: Mapping[str, str]) -> Response:
        """The document, or a 304 for a browser that has it.

        Args:
            asked: the request's headers, by names in lower case.
        """
        known = {tag.strip() for tag in asked.get("if-none-match", "").split(",")}
        if known & {"*", self.headers["etag"]}:
            return Response(status_code=304, headers=self.headers)
        if _GZIP.search(asked.get("accept-encoding", "")):
            return Response(self.packed, headers={**self.headers, "content-encoding": "gzip"})
        return Response(self.plain, headers=self.headers)


@cache
def page(name: str) -> Page:
    """The page `NAME/page.html` of this folder. It is read once."""
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def part(match: re.Match[str]) -> str:
        kind, names = match[1], match[2].split()
        text = "\n".join((_FOLDER / each).read_text(encoding="utf-8") for each in names)
        assert not _ENDING.search(text), f"{match[2]} would end its element"
        digest = hashlib.sha256(text.encode()).digest()
        hashes[kind].append(f"'sha256-{base64.b64encode(digest).decode()}'")
        begin, end = _TAGS[kind]
        return f"{begin}{text}{end}"

    html = _PART.sub(part, (_FOLDER / name / "page.html").read_text(encoding="utf-8")).encode()
    allowed = {kind: " ".join(each) or "'none'" for kind, each in hashes.items()}
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": _POLICY.format_map(allowed),
        "etag": f'W/"{hashlib.sha256(html).hexdigest()[:32]}"',  # weak: the same for both codings
        "cache-control": "no-cache",
        "vary": "accept-encoding",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cross-origin-opener-policy": "same-origin",
    }
    return Page(html, gzip.compress(html, mtime=0), headers)
