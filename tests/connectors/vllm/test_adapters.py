import os
from types import SimpleNamespace

from p2pkv.connectors.vllm.adapters import AdapterDigests


def lora(folder, name="a"):
    return SimpleNamespace(lora_name=name, lora_path=str(folder))


def written(folder, weights=b"one"):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def test_equal_adapters_have_one_name_wherever_they_lie(tmp_path):
    here, there = written(tmp_path / "here"), written(tmp_path / "there")
    assert AdapterDigests().name(lora(here)) == AdapterDigests().name(lora(there))


def test_an_adapter_of_the_same_name_with_other_weights_has_another(tmp_path):
    digests, folder = AdapterDigests(), written(tmp_path / "a")
    before = digests.name(lora(folder))
    written(folder, b"two")
    os.utime(folder / "adapter_model.safetensors", ns=(1, 1))
    assert digests.name(lora(folder)) != before
    assert digests.name(lora(folder, "b")) != digests.name(lora(folder))


def test_an_adapter_without_files_here_has_no_name(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert AdapterDigests().name(lora(tmp_path / "nowhere")) is None
    assert AdapterDigests().name(lora("org/adapter-on-a-hub")) is None
    assert AdapterDigests().name(lora(empty)) is None
