"""Text that the usual font of a figure lacks, such as names in Chinese, Japanese or Korean."""

from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

_FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC",
    "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic",
    "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Unifont",
)  # fmt: skip


def draw_all_text(figure: Figure) -> list[tuple[str, str]]:
    """Give every text a font that has its characters; number the parts that none has.

    Args:
        figure: Its texts are changed in place.

    Returns:
        (mark, what it stands for) of every part that no installed font can draw; the figure has
        the mark, such as "[1]", in its place.
    """
    replaced: dict[str, str] = {}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        shown = text.get_text()
        if not shown or shown.isascii():
            continue
        usual = font_manager.findfont(text.get_fontproperties())
        if not _lacking(shown, (usual,)):
            continue
        fonts = _fallbacks()
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
        lacking = _lacking(shown, (usual, *fonts.values()))
        if lacking:
            text.set_text(_marked(shown, lacking, replaced))
    return [(mark, part) for part, mark in replaced.items()]


def _marked(text: str, lacking: frozenset[str], replaced: dict[str, str]) -> str:
    """Put a mark for every run of characters that cannot be drawn."""
    result, run = "", ""
    for character in [*text, ""]:
        if character and character in lacking:
            run += character
            continue
        if run:
            result += replaced.setdefault(run, f"[{len(replaced) + 1}]")
            run = ""
        result += character
    return result


def _lacking(text: str, files: tuple[str, ...]) -> frozenset[str]:
    return frozenset(c for c in set(text) if c.isprintable() and not any(_has(f, c) for f in files))


@cache
def _has(file: str, character: str) -> bool:
    return font_manager.get_font(file).get_char_index(ord(character)) != 0


@cache
def _fallbacks() -> dict[str, str]:
    """Files of the installed fonts among the fallbacks, by name."""
    files = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    return {name: files[name] for name in _FALLBACKS if name in files}
