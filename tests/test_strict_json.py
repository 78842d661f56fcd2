"""JSON from strangers: what two readers could understand in two ways is refused, with one error and in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from trl_bonesoup.errors import FrontError, ManifestError
from trl_bonesoup.strict_json import MAX_DEPTH, parse_json, problems, read_json, shown


def refusal(content: bytes) -> str:
    with pytest.raises(ManifestError) as caught:
        parse_json(content, "here", ManifestError)
    return str(caught.value)


class TestParse:
    @pytest.mark.parametrize("value", [None, True, -3, 0.25, "有用 «🍲»", [1, [2]], {"a": {"b": []}}, 10**300])
    def test_values_come_back(self, value):
        assert parse_json(json.dumps(value).encode(), "here", ManifestError) == value

    def test_the_larger_of_two_equal_keys_does_not_win(self):
        assert "'beta' is given twice" in refusal(b'{"a": {"beta": 1, "x": 2, "beta": 3}}')

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
    def test_numbers_that_are_not_finite(self, number):
        assert f"{number} is not a finite number" in refusal(f'{{"a": [{number}]}}'.encode())

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[1,]", b"\xff", b"\xef\xbb\xbf{}", b'"\\ud800"', b'{"\\udfff": 1}', b"1" * 5000]
        + [opening * 200_000 for opening in (b"[", b'{"a":')],
        ids=lambda content: repr(content[:12]),
    )
    def test_what_is_no_json_or_cannot_be_written_again(self, content):
        assert refusal(content).startswith("here is not valid JSON: ")

    @pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
    def test_nesting_ends_before_python_does(self, opening, closing):
        parse_json(opening * MAX_DEPTH + b"0" + closing * MAX_DEPTH, "here", ManifestError)
        content = opening * (MAX_DEPTH + 1) + b"0" + closing * (MAX_DEPTH + 1)
        assert f"more than {MAX_DEPTH} lists or objects inside one another" in refusal(content)

    def test_the_error_is_the_one_asked_for(self):
        with pytest.raises(FrontError, match=r"front\.json is not valid JSON"):
            parse_json(b"", "front.json", FrontError)

    @given(st.binary(max_size=60))
    def test_any_bytes_give_a_value_that_can_be_written_or_the_error(self, content):
        try:
            value = parse_json(content, "here", ManifestError)
        except ManifestError as error:
            message = str(error)
        else:
            message = ""
            assert json.loads(json.dumps(value, allow_nan=False)) == value
        assert message.isprintable()


class TestRead:
    def test_no_more_than_the_limit_is_read(self, tmp_path):
        file = tmp_path / "a.json"
        file.write_bytes(b"[0]   ")
        assert read_json(file, ManifestError, 6) == [0]
        file.write_bytes(b"[0]    ")
        with pytest.raises(ManifestError, match=r"a\.json has at most 6 bytes"):
            read_json(file, ManifestError, 6)

    def test_a_folder_is_no_file(self, tmp_path):
        with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
            read_json(tmp_path, ManifestError, 10)


class TestMessages:
    def test_text_from_a_file_cannot_steer_a_terminal(self):
        assert shown("red \x1b[31m\n\x9b2J\u202e end") == "red \\x1b[31m\\n\\x9b2J\\u202e end"

    def test_nor_fill_it(self):
        assert shown("x" * 10_000) == "x" * 300 + "…"

    def test_problems_are_few_short_and_printable(self):
        class Empty(BaseModel):
            model_config = ConfigDict(extra="forbid")

        with pytest.raises(ValidationError) as caught:
            Empty.model_validate({"\x1b[2J": 1, **{f"{i}" * 500: 1 for i in range(1, 9)}})
        text = problems(caught.value, "soup")
        assert text.startswith("\\x1b[2J: Extra inputs are not permitted; 111")
        assert text.endswith("; and 4 more")
        assert len(text) < 2000
