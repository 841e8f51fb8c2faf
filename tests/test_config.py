"""Configuration: what is typed is what is run, and a mistake is one line with its cure."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from audiolm.config import Config, difference, load_config
from audiolm.errors import InputError


class Network(Config):
    width: int = Field(default=8, gt=0)
    bodies: tuple[str, ...] = ("spectral",)


class Training(Config):
    steps: int = 10
    lr: float = 1e-3
    network: Network = Network()


class Whole(Config):
    data: str
    layer: int | Literal["auto"] = "auto"
    codec: Training = Training()
    passes: tuple[Training, ...] = ()
    stages: dict[str, Training] = Field(default_factory=dict)

    @field_validator("data")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value:
            raise ValueError("give a folder")
        return value


def recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_file_and_overrides(tmp_path: Path) -> None:
    text = 'data = "sounds"\n[codec]\nsteps = 5\n[codec.network]\nwidth = 4\n[stages.coarse]\nlr = 0.5\n'
    path = recipe(tmp_path, text + "[[passes]]\nsteps = 1\n[[passes]]\nsteps = 2\n")
    overrides = ["codec.lr=1e-4", "codec.network.bodies=['a', 'b']", "layer=3", "stages.fine.steps=7", "passes.1.lr=5"]
    config = load_config(Whole, path, overrides)
    assert (config.codec.steps, config.codec.lr, config.layer) == (5, 1e-4, 3)
    assert (config.codec.network.width, config.codec.network.bodies) == (4, ("a", "b"))
    assert (config.stages["coarse"].lr, config.stages["fine"].steps) == (0.5, 7)
    assert [(each.steps, each.lr) for each in config.passes] == [(1, 1e-3), (2, 5.0)]
    with pytest.raises(ValidationError):
        config.codec.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("text", ["/a folder/with = sign", "2024", "C:\\sounds", "x # y", "1\nlayer = 3", "a]b"])
def test_override_is_text_where_it_is_not_toml(text: str) -> None:
    assert load_config(Whole, None, [f"data={text}"]).data == text


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("", [], "'data' is missing"),
        ("data = 'x'\n[codec]\nstpes = 3", [], "recipe.toml: unknown key 'codec.stpes'; did you mean 'codec.steps'?"),
        ("data = 'x'", ["codec.stpes=3"], "codec.stpes=3: unknown key 'codec.stpes'; did you mean 'codec.steps'?"),
        ("data = 'x'", ["steps=3"], "steps=3: unknown key 'steps'; did you mean 'codec.steps'?"),
        ("dtaa = 'x'", [], "recipe.toml: unknown key 'dtaa'; did you mean 'data'?"),
        ("data = 'x'", ["codec.network.qq=3"], "known keys here: bodies, width"),
        ("data = 'x'\n[codec]\nlr = nan", [], "recipe.toml: codec.lr: input should be a finite number"),
        ("data = 'x'", ["codec.lr=-inf"], "codec.lr=-inf: codec.lr: input should be a finite number"),
        ("data = 'x'\n[codec]\nsteps = 'many'", [], "recipe.toml: codec.steps: input should be a valid integer"),
        (
            "data = 'x'",
            ["codec.network.width=0"],
            "codec.network.width=0: codec.network.width: input should be greater than 0 (got 0)",
        ),
        ("data = ''", [], "recipe.toml: data: give a folder (got '')"),
        ("data = 'x'", ["data.folder=3"], "'data' is not a table"),
        ("data = 'x'", ["codec=3"], "codec=3: codec: input should be a valid dictionary"),
        ("data = 'x'", ["codec.steps"], "write options as key=value"),
        ("data = 'x'", ["=3"], "write options as key=value"),
        ("data = 'x'\n[[passes]]\nstpes = 3", [], "unknown key 'passes.0.stpes'; did you mean 'passes.steps'?"),
        ("data = 'x'\n[[passes]]\nsteps = 3", ["passes.1.steps=3"], "'passes.1' is not a table"),
        ("data = 'x'\n[[passes]]\nsteps = 3", ["passes.steps=3"], "'passes' is a list; give an index"),
        ("data = ", [], "recipe.toml: not a TOML file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Whole, recipe(tmp_path, text), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml: cannot be read"):
        load_config(Whole, tmp_path / "nothing.toml")


def test_digest_and_difference_follow_values() -> None:
    one, same, other = (load_config(Whole, None, ["data=x", f"codec.lr={lr}"]) for lr in ("1e-3", "0.001", "2e-3"))
    assert one.digest() == same.digest() != other.digest()
    assert difference(one.plain(), same.plain()) is None
    assert difference(one.plain(), other.plain()) == "codec.lr was 0.001, is 0.002"
    assert difference({"a": 1}, {"b": 2}) == "a was 1, is null"
