"""The text of an HTML page, without markup, scripts and styles."""

import re
from html.parser import HTMLParser

HIDDEN = {"script", "style", "template"}
# Elements that a browser sets apart from what precedes them, or starts a line with.
PARAGRAPHS = {
    "article", "blockquote", "dl", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hr", "main", "nav", "ol", "p", "pre", "section", "table", "title", "ul",
}  # fmt: skip
LINES = {
    "address", "aside", "caption", "dd", "details", "div", "dt", "figcaption", "legend", "li", "option",
    "summary", "tr",
}  # fmt: skip
CELLS = {"td", "th"}


def text_of_html(page: str) -> str:
    """Return the visible text: white space as one space, paragraphs a line apart.

    The text of `pre` stays as it is. Broken markup is no error, as in a browser.
    """
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = "".join(parser.parts).split("\n")
    text = "\n".join(line.rstrip(" ") for line in lines).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) + "\n" if text else ""


class _Text(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = self._preformatted = 0  # elements of this kind that are open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self._hidden += tag in HIDDEN
        self._preformatted += tag == "pre"
        self._break(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in HIDDEN))
        self._preformatted = max(0, self._preformatted - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        """Keep the text between two tags, if it is visible."""
        if self._hidden:
            return
        if not self._preformatted:
            data = re.sub(r"[ \t\r\n\f]+", " ", data)
            if not self.parts or self.parts[-1][-1] in " \n":
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        """What an element puts between the texts before and after its tag."""
        if self._hidden or not self.parts:
            return
        if tag == "br":
            self.parts.append("\n")
        elif tag in PARAGRAPHS:
            self.parts.append("\n\n")
        elif tag in LINES and self.parts[-1][-1] != "\n":
            self.parts.append("\n")
        elif tag in CELLS and self.parts[-1][-1] not in " \n":
            self.parts.append(" ")
