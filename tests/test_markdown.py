"""User text in a card stays text."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from trl_bonesoup.markdown import (
    MAX_SHOWN,
    code,
    fenced,
    hide_local_paths,
    is_local_path,
    last_folder,
    one_line,
    table,
)

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")

HOSTILE = [
    '"}]\n---',
    "{{7*7}}",
    "{% for x in y %}",
    "[x](javascript:alert(1))",
    "![x](https://example.org/track.png)",
    "<script>alert(1)</script>",
    "<https://example.org>",
    "a`b``c```d",
    "`",
    "a | b \\| c",
    "ends with \\",
    "# heading",
    "* * *",
    "line\r\n\r\n    code",
    "sep\u2028arated\x85",
    "\u202egnihtemos",
    "&lt;b&gt;",
    "\ud800",
]


def inline_tokens(markdown):
    return [child for token in MARKDOWN.parse(markdown) for child in token.children or []]


class TestCode:
    @pytest.mark.parametrize("text", HOSTILE)
    @pytest.mark.parametrize("frame", ["before {} after", "# {}", "| {} | x |\n| --- | --- |\n| {} | y |", "- {}"])
    def test_hostile_text_is_one_code_span(self, text, frame):
        markdown = frame.format(code(text), code(text)) if frame.count("{}") == 2 else frame.format(code(text))
        tokens = inline_tokens(markdown)
        assert {token.type for token in tokens} <= {"code_inline", "text"}
        assert sum(token.type == "code_inline" for token in tokens) == frame.count("{}")

    @given(st.text())
    def test_any_text_is_one_code_span_in_a_table(self, text):
        tokens = MARKDOWN.parse(table(["Name", "Value"], [[code(text), "1"]]))
        kinds = [token.type for token in tokens]
        assert kinds.count("tr_open") == 2
        assert kinds.count("td_open") == 2
        (span,) = [child for token in tokens for child in token.children or [] if child.type == "code_inline"]
        assert "|" not in span.content

    @pytest.mark.parametrize("name", ["helpful", "有用", "полезно", "مفيد", "a_b-c.d", "two words", "🍲"])
    def test_ordinary_names_are_shown_as_they_are(self, name):
        assert code(name) == f"`{name}`"

    def test_nothing_left_to_show(self):
        assert code(" \n\u202e ") == "`(empty)`"

    def test_long_text_is_cut(self):
        assert code("x" * MAX_SHOWN) == f"`{'x' * MAX_SHOWN}`"
        assert code("x" * (MAX_SHOWN + 1)) == f"`{'x' * (MAX_SHOWN - 1)}…`"

    def test_one_line_drops_what_hides_or_reorders(self):
        assert one_line("a\u202eb\nc\td\x00e\u2066 ") == "ab c d e"


class TestFenced:
    @given(st.text() | st.text(alphabet="`~\n a"))
    @example("a\n```\n# owned\n````\n")
    def test_any_text_is_one_block(self, text):
        tokens = MARKDOWN.parse(f"before\n\n{fenced(text, 'yaml')}\n\nafter")
        assert [token.type for token in tokens].count("fence") == 1
        assert [token.content for token in tokens if token.type == "inline"] == ["before", "after"]

    def test_lines_and_indentation_stay(self):
        assert fenced("a:\n  - b: '|'\n", "yaml") == "```yaml\na:\n  - b: '|'\n```"

    def test_control_characters_do_not(self):
        content = fenced("a\x1b[31m\u202eb", "yaml")
        assert not {unicodedata.category(c) for c in content} & {"Cf"}
        assert "\x1b" not in content


class TestLocalPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/",
            "/home/ann/sft",
            "~/sft",
            "~ann/sft",
            "../sft",
            "./sft",
            ".",
            "C:\\sft",
            "c:/sft",
            "\\\\nas\\x",
            "file:///sft",
        ],
    )
    def test_is_local(self, path):
        assert is_local_path(path)

    @pytest.mark.parametrize("text", ["org/sft", "gpt2", "https://example.org/x", "rewards:helpful", "a/b/c", ""])
    def test_is_not_local(self, text):
        assert not is_local_path(text)

    @pytest.mark.parametrize(
        ("path", "last"),
        [
            ("/home/ann/sft", "sft"),
            ("/home/ann/sft/", "sft"),
            ("C:\\a\\b c", "b c"),
            ("../run", "run"),
            ("/", "local-model"),
            ("/home/ann", "home"),
            ("/Users/ann/", "home"),
            ("C:\\Users\\ann", "home"),
            ("~ann", "home"),
            ("/data/home", "home"),
            ("/srv/models/ann", "ann"),
        ],
    )
    def test_last_folder(self, path, last):
        assert last_folder(path) == last

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("/home/ann/my models/sft", "sft"),
            ("/home/ann/rewards.py:brevity", "rewards.py:brevity"),
            ("/home/ann/sft+/home/ann/run/helpful", "sft+helpful"),
            ("org/sft+/home/ann/run/helpful", "org/sft+helpful"),
            ("python /home/ann/train.py --out=/data/run, then", "python train.py --out=run, then"),
            ("see '/home/ann/x' and (~/y)", "see 'x' and (y)"),
            ("C:\\Users\\ann\\sft", "sft"),
            ("load C:\\Users\\ann\\sft", "load sft"),
            ("file:///home/ann/sft", "sft"),
            ("wheel @ file:///home/ann/dist/a.whl", "wheel @ a.whl"),
            ("https://example.org/a/b", "https://example.org/a/b"),
            ("words/20", "words/20"),
            ("yes / no", "yes / no"),
        ],
    )
    def test_hide_in_text(self, text, shown):
        assert hide_local_paths(text) == shown

    def test_hide_in_structures_keeps_everything_else(self):
        given_value = {"models": [{"model": "/a/b", "weight": -0.75}], "normalize": False, "dtype": None}
        assert hide_local_paths(given_value) == {
            "models": [{"model": "b", "weight": -0.75}],
            "normalize": False,
            "dtype": None,
        }
        assert given_value["models"][0]["model"] == "/a/b"
