"""The page in the browser: one file, which may load and run nothing but what is in it."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from starlette.responses import Response


def page_response() -> Response:
    """The page, with a policy under which no other script or style runs."""
    text = page_text()
    headers = {
        "Content-Security-Policy": policy(text),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


@cache
def page_text() -> str:
    """The file."""
    return resources.files("lightstride.serve").joinpath("page/index.html").read_text("utf-8")


def policy(text: str) -> str:
    """The Content-Security-Policy of a page: what is in it, by hashes; its own server."""
    scripts = " ".join(map(source_hash, re.findall(r"<script>(.*?)</script>", text, re.DOTALL)))
    styles = " ".join(map(source_hash, re.findall(r"<style>(.*?)</style>", text, re.DOTALL)))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def source_hash(source: str) -> str:
    """A script or style as policies name it."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
