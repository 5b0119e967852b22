from pathlib import Path

import pytest

from p2pkv.demo import model
from p2pkv.errors import ConfigError


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("P2PKV_CACHE_DIR", "/one")
    assert model.cache_folder() == Path("/one")
    monkeypatch.delenv("P2PKV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert model.cache_folder() == Path("/two/p2pkv")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert model.cache_folder() == Path("/three/.cache/p2pkv")


def test_a_model_is_converted_once_and_appears_whole(tmp_path, monkeypatch):
    converted = []

    def convert(gguf, folder, dtype):
        converted.append((gguf.suffix, dtype))
        folder.mkdir()
        (folder / "model.safetensors").touch()

    monkeypatch.setenv("P2PKV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "_convert", convert)
    assert model.ready_model("bf16") is None
    folder = model.converted_model("bf16")
    assert model.converted_model("bf16") == model.ready_model("bf16") == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert model.converted_model("fp32") != folder
    assert converted == [(".gguf", "bf16"), (".gguf", "fp32")]


def test_another_process_that_was_faster_is_no_error(tmp_path, monkeypatch):
    def convert(gguf, folder, dtype):
        for made in (folder, model._folder(dtype)):  # the other process finishes while this one converts
            made.mkdir()
            (made / "model.safetensors").write_text(str(made))

    monkeypatch.setenv("P2PKV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(model, "_convert", convert)
    folder = model.converted_model()
    assert (folder / "model.safetensors").read_text() == str(folder)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def convert(gguf, folder, dtype):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("P2PKV_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(model, "_convert", convert)
    with pytest.raises(ConfigError, match=r"cannot write the converted model \(No space left on device\)"):
        model.converted_model()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["torch", "transformers", "gguf"])
def test_a_missing_library_is_named(monkeypatch, library):
    find = model.importlib.util.find_spec
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda name: None if name == library else find(name))
    with pytest.raises(ConfigError, match=f"{library} is not installed") as caught:
        model.converted_model()
    assert "p2pkv[transformers]" in caught.value.hint
