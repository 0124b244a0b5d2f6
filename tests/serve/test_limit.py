import json

import pytest

from vllmrt.serve.limit import model_limit


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 300}, "max_position_embeddings": 9}, 300),
        ({"text_config": {"hidden_size": 1}, "max_position_embeddings": 9}, 9),
        ({"text_config": None, "max_position_embeddings": 9}, 9),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": "512"}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
)
def test_limit_of_a_configuration(tmp_path, config, limit):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_limit(tmp_path) == limit


def test_mistral_has_its_own_file(tmp_path):
    (tmp_path / "params.json").write_text('{"max_position_embeddings": 131072}')
    assert model_limit(tmp_path) == 131072


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' + b"[" * 100_000])
def test_a_broken_configuration_is_for_others_to_report(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert model_limit(tmp_path) is None


def test_nothing_there(tmp_path):
    assert model_limit(tmp_path / "missing") is None
    (tmp_path / "config.json").mkdir()
    assert model_limit(tmp_path) is None
