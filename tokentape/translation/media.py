"""Images and files in a request: where a part's content is, and what kind it is of.

chat.completions itself knows `image_url` (a URL, also a data: URL) and files as `file_data` (a data: URL) or `file_id`.
What the routers in front of several vendors take is read too: a file by URL, under `file_data`, `file_url` or
`file_id`, and bare base64 under `file_data`. Source: the API reference, and the documents of OpenRouter and LiteLLM.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from tokentape.errors import InvalidRequest

from .drops import Drops
from .request import object_at, text_at

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[^;,]*)*)(;base64)?,", re.ASCII | re.IGNORECASE)
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
#: How a PDF begins, in base64.
_PDF: Final = "JVBERi0"
#: By the end of a name. A table of our own: what a machine's mime.types says differs from machine to machine.
_TYPES: Final = {
    "pdf": "application/pdf",
    "txt": "text/plain",
    "md": "text/markdown",
    "csv": "text/csv",
    "html": "text/html",
    "xml": "text/xml",
    "json": "application/json",
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "heic": "image/heic",
    "heif": "image/heif",
    "mp3": "audio/mp3",
    "wav": "audio/wav",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
}


class DataUrl(NamedTuple):
    """A file inside the request: base64 `data` without line breaks, and its media type."""

    media_type: str
    data: str


class Media(NamedTuple):
    """An image or a file: its URL (https:, data:, or another), the path of the field it stands in, and its name."""

    url: str
    field: str
    name: str | None = None

    def data(self) -> DataUrl | None:
        """What a data: URL holds; None for any other URL. Raises InvalidRequest for one that is broken."""
        return data_url(self.url, self.field)

    def media_type(self) -> str | None:
        """What the name, or else the URL's path, says that it is; None where neither does."""
        path = re.split(r"[?#]", self.url, maxsplit=1)[0]
        return _type_of(self.name or "") or _type_of(path.partition("://")[2].partition("/")[2])


def image_of(part: Mapping[str, Any], field: str, drops: Drops) -> Media:
    """The image of an image_url part."""
    image = part.get("image_url")
    image = {"url": image} if isinstance(image, str) else object_at(part, "image_url", field)
    field = f"{field}.image_url"
    if image.get("detail") not in (None, "auto"):
        drops.unsupported(f"{field}.detail", "the upstream's API has no levels of detail")
    drops.beyond({"url", "detail"}, image, field)
    return Media(text_at(image, "url", field), f"{field}.url")


def file_of(part: Mapping[str, Any], field: str, drops: Drops) -> Media | None:
    """The file of a file part; None where it was dropped."""
    file = object_at(part, "file", field)
    field = f"{field}.file"
    source = next((name for name in ("file_data", "file_url", "file_id") if file.get(name) is not None), None)
    if source is None:
        raise InvalidRequest("needs file_data (a data: URL) or file_url", field=field)
    drops.beyond({source, "filename"}, file, field)
    name = file.get("filename")
    name = name if isinstance(name, str) and name else None
    url = text_at(file, source, field)
    if not _SCHEME.match(url):
        if source != "file_data":
            drops.unsupported(f"{field}.{source}", "a file of another vendor's store; use file_data or file_url")
            return None
        media_type = _type_of(name or "") or ("application/pdf" if url.startswith(_PDF) else None)
        if media_type is None:
            raise InvalidRequest("must be a data: URL, which says what the file is", field=f"{field}.{source}")
        url = f"data:{media_type};base64,{url}"
    return Media(url, f"{field}.{source}", name)


def data_url(url: str, field: str) -> DataUrl | None:
    """A data: URL's media type and base64; None for any other URL. Raises InvalidRequest for one that is broken.

    As browsers read them: white space in the data and its padding do not matter, and what is escaped is not.
    """
    if url[:5].lower() != "data:":
        return None
    match = _DATA_URL.match(url)
    if match is None or not match[3] or not match[1]:
        raise InvalidRequest("a data: URL needs a media type and ;base64", field=field)
    data = url[match.end() :]
    data = "".join((unquote(data) if "%" in data else data).split())
    data += "=" * (-len(data) % 4)
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise InvalidRequest("the data is not base64", field=field) from None
    if not content:
        raise InvalidRequest("the data: URL holds nothing", field=field)
    return DataUrl(match[1].lower(), data)


def text_of(data: DataUrl, field: str) -> str:
    """The content of a plain text file. Raises InvalidRequest where it is no text in UTF-8."""
    try:
        return base64.b64decode(data.data).decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the text is not UTF-8", field=field) from None


def _type_of(name: str) -> str | None:
    _, dot, end = name.rpartition(".")
    return _TYPES.get(end.lower()) if dot else None
