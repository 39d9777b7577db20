"""Folders of transformers: weights in several files, and folders that are damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pixvox.errors import WeightsError
from pixvox.weights.transformers_folder import class_names, read_transformers_folder

INDEX = "model.safetensors.index.json"


def folder(path, index=None):
    (path / "config.json").write_text(json.dumps({"model_type": "mask2former"}))
    if index is not None:
        (path / INDEX).write_text(json.dumps(index))
    return path


def test_weights_in_several_files_are_read_together(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "two.safetensors")
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    config, state = read_transformers_folder(folder(tmp_path, {"weight_map": places}))
    assert config == {"model_type": "mask2former"}
    assert {key: tuple(value.shape) for key, value in state.items()} == {"a": (1,), "b": (2,)}


def test_nothing_is_read_outside_of_the_folder(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "inner").mkdir()
    inner = folder(tmp_path / "inner", {"weight_map": {"a": "../secret.safetensors"}})
    with pytest.raises(WeightsError, match="there is no such file"):
        read_transformers_folder(inner)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_files_is_refused(tmp_path, index):
    with pytest.raises(WeightsError, match="weight_map names no files"):
        read_transformers_folder(folder(tmp_path, index))


def test_an_index_of_strange_names_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="there is no such file"):
        read_transformers_folder(folder(tmp_path, {"weight_map": {"a": ["b"], "c": 3}}))


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], folder(tmp_path) / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds a list"):
        read_transformers_folder(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        {"_target_": "os.system", "command": "true"},
        {"a:1,_target_": "os.system"},
        [[{"deep": "${oc.env:HOME}"}]],
        "${oc.env:HOME}",
    ],
)
def test_a_configuration_that_could_run_code_is_refused(tmp_path, value):
    path = folder(tmp_path)
    save_file({"a": torch.ones(1)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "mask2former", "inner": {"dropout": value}}))
    with pytest.raises(WeightsError, match="could run code; refused"):
        read_transformers_folder(path)


def test_a_word_like_that_of_a_call_is_none(tmp_path):
    path = folder(tmp_path)
    save_file({"a": torch.ones(1)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "bart", "max_target_positions": 8}))
    assert read_transformers_folder(path)[0]["max_target_positions"] == 8


def test_names_of_classes_that_are_no_mapping_are_passed_over():
    assert class_names({"id2label": ["cell"]}, 1) == ()
