"""Charts inside a page: an SVG a panel, in the page's own colours and letters, whose shapes say what they are.

matplotlib draws; afterwards black is the page's text colour, white its background, greys its rules, and text has the
page's font. Shapes are grouped by their entry in the legend (`words.series_label`), which the page draws itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.report.pictures.figures import rendered
from benchmarks.report.pictures.words import read_text, series_of

PIXELS = 96 / 72
"""Of a page, in a point of matplotlib's."""
OWN_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--page)",
    "#dddddd": "var(--rule)",
    "#bbbbbb": "var(--rule)",
    "#888888": "var(--muted)",
}
"""What a chart's colours are in a page of any theme; the others are the rows' own."""
COLOUR = re.compile("|".join(OWN_COLOURS))
FONT = re.compile(r"font-family: [^;]*;?|(?<=px) '[^;]*")
FRACTION = re.compile(r"(\.\d\d)\d+")
DASHES = {"-": "", "--": "5 3", ":": "1.5 2", "-.": "6 2 1.5 2"}


@dataclass(frozen=True)
class Panel:
    """One panel: its SVG and its width in pixels of the page."""

    svg: str
    width: float


@dataclass(frozen=True)
class Key:
    """An entry of a legend: text, colour, marker ("" without) and the dashes of its line (None without)."""

    text: str
    colour: str
    marker: str
    dashes: str | None


@dataclass(frozen=True)
class InlineChart:
    """The panels of a chart and the entries of its legend, by the number that their shapes carry."""

    panels: list[Panel]
    keys: list[Key]


def inline(figure: Figure, name: str) -> InlineChart:
    """`figure` for a page in which no other has that name; it is of no use for anything else afterwards."""
    keys = list(_keys(figure))
    for axis in figure.axes:
        axis.tick_params(labelleft=True, labelbottom=True)  # a page puts panels below each other, too
    figure.draw_without_rendering()  # lays the panels out
    figure.set_layout_engine("none")
    for text in (*figure.texts, *figure.legends):
        text.set_visible(False)
    panels = []
    for index, axis in enumerate(figure.axes):
        for other in figure.axes:
            other.set_visible(other is axis)
        panels.append(_panel(figure, axis, f"{name}-{index}"))
    return InlineChart(panels, keys)


def _keys(figure: Figure) -> Iterator[Key]:
    """The entries of the figure's legend."""
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            if isinstance(handle, Line2D):
                marker = str(handle.get_marker())
                colour = _own(str(handle.get_color()))
                dashes = DASHES.get(str(handle.get_linestyle()))
                yield Key(read_text(text.get_text()), colour, "" if marker == "None" else marker, dashes)


def _panel(figure: Figure, axis: Axes, name: str) -> Panel:
    """The only visible panel of `figure`."""
    series: dict[str, tuple[int, str]] = {}
    names = axis.get_legend_handles_labels()[1]
    for artist in axis.findobj():
        found = _series(str(artist.get_label()), names)
        if found is not None:
            artist.set_gid(f"shape{len(series)}")
            series[f"shape{len(series)}"] = found
    root = ET.fromstring(rendered(figure, "svg", pad=0.04, letters="none"))
    _tidy(root)
    _group(root, series)
    _rename(root, name)
    width = float(root.attrib.pop("width").removesuffix("pt")) * PIXELS
    del root.attrib["height"], root.attrib["version"]
    root.attrib |= {"role": "img", "aria-label": _described(axis, [text for _, text in series.values()])}
    return Panel(ET.tostring(root, encoding="unicode"), width)


def _series(label: str, names: list[str]) -> tuple[int, str] | None:
    """The legend's entry that a shape with the label is of, and its text; None for axes, grids and the like.

    `names` are the labels that a legend takes from the panel.
    """
    return (names.index(label), read_text(label)) if label in names else series_of(label)


def _described(axis: Axes, texts: list[str]) -> str:
    """The panel in words: what it is of, and what its shapes say."""
    axes = " against ".join(filter(None, (read_text(axis.get_ylabel()), read_text(axis.get_xlabel()))))
    heading = ". ".join(filter(None, (read_text(axis.get_title()), axes)))
    return f"Chart. {heading}: {'; '.join(dict.fromkeys(texts))}"


def _tidy(root: ET.Element) -> None:
    """Without name spaces, metadata and style sheets; numbers with two decimals, colours and letters the page's own."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag == "text":
            element.text = read_text(element.text or "")
        if "d" in element.attrib:
            element.attrib["d"] = FRACTION.sub(r"\1", " ".join(element.attrib["d"].split()))
        if "style" in element.attrib:
            element.attrib["style"] = FONT.sub("", _own(element.attrib["style"])).replace("font: ", "font-size: ")


def _own(text: str) -> str:
    """`text` with the page's colours."""
    return COLOUR.sub(lambda found: OWN_COLOURS[found[0]], text)


def _group(root: ET.Element, series: dict[str, tuple[int, str]]) -> None:
    """Say of each shape, by its id, which entry of the legend it is of, and what pointing at it shows."""
    for element in root.iter():
        found = series.get(element.attrib.get("id", ""))
        if found is not None:
            element.attrib["class"] = f"series s{found[0]}"
            title = ET.Element("title")
            title.text = found[1]
            element.insert(0, title)


def _rename(root: ET.Element, name: str) -> None:
    """Begin the ids that are referred to with `name`, and leave out the others: a page holds many charts."""
    used = set(
        re.findall(r"#([\w-]+)", " ".join(value for element in root.iter() for value in element.attrib.values()))
    )
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id" and value not in used:
                del element.attrib[key]
            elif key == "id":
                element.attrib[key] = f"{name}-{value}"
            elif key == "href":
                element.attrib[key] = f"#{name}-{value[1:]}"
            else:
                element.attrib[key] = value.replace("url(#", f"url(#{name}-")
