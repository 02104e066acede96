"""HTML text in; what a reader, a screen reader and a browser find in it out, with the faults a page must not have."""

import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
INLINE = "data:image/png;base64,"
"""How the source of a picture begins that the page holds itself."""
LOADS = {"src", "href", "srcset", "data", "poster", "action", "xlink:href", "background"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}


@dataclass
class Node:
    tag: str
    attributes: dict
    parent: "Node | None" = None
    children: list = field(default_factory=list)

    def all(self, *tags):
        for child in self.children:
            if isinstance(child, Node):
                if child.tag in tags or not tags:
                    yield child
                yield from child.all(*tags)

    @property
    def text(self):
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(parts).split())

    def within(self, **attributes):
        node = self.parent
        while node is not None:
            if all(node.attributes.get(key.replace("_", "-")) == value for key, value in attributes.items()):
                return True
            node = node.parent
        return False


class Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.here = Node("root", {})
        self.faults = []

    def handle_starttag(self, tag, attrs):
        if len({key for key, _ in attrs}) < len(attrs):
            self.faults.append(f"<{tag}> repeats an attribute")
        node = Node(tag, dict(attrs), self.here)
        self.here.children.append(node)
        if tag not in VOID:
            self.here = node

    def handle_startendtag(self, tag, attrs):
        self.here.children.append(Node(tag, dict(attrs), self.here))

    def handle_endtag(self, tag):
        if self.here.tag != tag:
            self.faults.append(f"</{tag}> closes <{self.here.tag}>")
        else:
            self.here = self.here.parent

    def handle_data(self, data):
        self.here.children.append(data)


def read_page(html):
    parser = Parser()
    parser.feed(html)
    parser.close()
    if parser.here is not parser.root:
        parser.faults.append(f"<{parser.here.tag}> is not closed")
    return parser.root, parser.faults + faults_of(parser.root)


def faults_of(root):
    """What a self-contained, accessible page must not have."""
    return [*faults_of_nodes(root), *faults_of_headings(root), *faults_of_pictures(root), *faults_of_tables(root)]


def faults_of_nodes(root):
    ids = [n.attributes["id"] for n in root.all() if "id" in n.attributes]
    yield from (f"the id {name} is used twice" for name in set(ids) if ids.count(name) > 1)
    for node in root.all():
        for key, value in node.attributes.items():
            own = (value or "").startswith("#") and value[1:] in ids
            if key in LOADS and not own and not (node.tag == "img" and value.startswith(INLINE)):
                yield f"<{node.tag} {key}={value!r}> leads out of the page or nowhere"
            if key.startswith("on") or "url(" in (value or ""):
                yield f"<{node.tag} {key}={value!r}> runs or loads something"
            if key in ("aria-labelledby", "aria-describedby"):
                yield from (f"{key} names {name}, which is not there" for name in value.split() if name not in ids)
        is_named = node.attributes.get("aria-label") and "role" in node.attributes
        if node.attributes.get("tabindex") == "0" and not is_named:
            yield f"a focusable <{node.tag}> has no name or role"
    yield from (f"<{node.tag}> is there" for node in root.all("script", "link", "iframe", "object", "embed", "base"))
    styles = " ".join(node.text for node in root.all("style"))
    yield from (f"the style sheet has {word}" for word in ("url(", "@import", "@font-face", "http") if word in styles)


def faults_of_headings(root):
    levels = [int(node.tag[1]) for node in root.all(*HEADINGS)]
    if levels[:1] != [1] or levels.count(1) != 1:
        yield "the page does not begin with its only h1"
    yield from (f"h{b} follows h{a}" for a, b in itertools.pairwise(levels) if b > a + 1)


def faults_of_pictures(root):
    for picture in root.all("img", "svg"):
        titles = [node.text for node in picture.children if isinstance(node, Node) and node.tag == "title"]
        is_named = picture.attributes.get("role") == "img" and (picture.attributes.get("alt") or any(titles))
        if not is_named and picture.attributes.get("aria-hidden") != "true":
            yield f"a <{picture.tag}> has no text alternative"


def faults_of_tables(root):
    for table in root.all("table"):
        rows = [[cell for cell in row.children if isinstance(cell, Node)] for row in table.all("tr")]
        if not all(cell.tag == "th" and cell.attributes.get("scope") == "col" for cell in rows[0]):
            yield "a table has no header row"
        if not all(row[0].tag == "th" and row[0].attributes.get("scope") == "row" for row in rows[1:]):
            yield "a row has no header cell"
        if len({len(row) for row in rows}) != 1:
            yield f"rows differ in length: {[len(row) for row in rows]}"


def tables(root):
    """Every table as rows of texts, by the text of the heading it stands under."""
    found, heading = {}, ""
    for node in root.all("h2", "table"):
        if node.tag == "h2":
            heading = node.text
            continue
        rows = [[cell.text for cell in row.children if isinstance(cell, Node)] for row in node.all("tr")]
        found.setdefault(heading, []).append(rows)
    return found
