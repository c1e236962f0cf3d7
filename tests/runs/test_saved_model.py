"""A model without a run: saved into a folder, loaded, and used in place of a run."""

import h5py
import numpy as np
import pytest
from small_runs import content, pretrain_arguments, refused, run, write_text
from stage_runs import DEMONSTRATIONS, stage_arguments, write_jsonl

import npllm
from npllm.errors import ConfigError, DataError
from npllm.model import ActorCritic

TOKENIZER = npllm.byte_tokenizer()
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 32, "vocab_size": TOKENIZER.vocab_size}


@pytest.fixture
def finished(tmp_path, quick):
    out = tmp_path / "run"
    assert run(*pretrain_arguments(write_text(tmp_path), out, train__steps=1)) == 0
    return out


def small_model(dtype: str = "float32", **changes) -> npllm.GPT:
    """A model whose weights all differ from its initial ones."""
    model = npllm.GPT(npllm.ModelConfig(**SMALL | changes), seed=3, dtype=dtype)
    rng = np.random.default_rng(0)
    for array in model.params.values():
        array += rng.standard_normal(array.shape).astype(array.dtype)
    return model


def test_no_file_depends_on_the_time(finished):
    """The same model gives the same bytes, today and tomorrow."""
    npllm.save(small_model(), TOKENIZER, finished / "saved")
    files = list(finished.rglob("*.h5"))
    assert {file.parent.name for file in files} == {"saved", "checkpoints", "data"}
    for path in files:
        with h5py.File(path) as file:
            assert {h5py.h5g.get_objinfo(file.id, name.encode()).mtime for name in file} == {0}, path


def policy_of_a_pair() -> npllm.GPT:
    """The policy of PPO, whose parameters are a part of a larger buffer."""
    config = npllm.ModelConfig(**SMALL)
    return ActorCritic(config, npllm.ModelConfig(**SMALL, n_outputs=1), seed=3).policy


@pytest.mark.parametrize(
    "make",
    [
        small_model,
        lambda: small_model("float64"),
        lambda: small_model("bf16"),
        lambda: small_model(lora_rank=2),
        lambda: small_model(n_outputs=3),
        policy_of_a_pair,
    ],
    ids=["float32", "float64", "bf16", "LoRA", "classifier", "policy"],
)
def test_what_is_loaded_is_what_was_saved(tmp_path, make):
    model = make()
    npllm.save(model, TOKENIZER, tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "model.h5"):
        again, tokenizer = npllm.load(path)
        assert (again.config, again.seed, again.dtype_name) == (model.config, 3, model.dtype_name)
        assert tokenizer.sha256() == TOKENIZER.sha256()
        for name, array in model.params.items():
            np.testing.assert_array_equal(again.params[name], array)
        for name, array in model.merged().items():
            np.testing.assert_array_equal(again.merged()[name], array)
    assert sorted(content(tmp_path / "new" / "folder")) == ["model.h5", "tokenizer.json"]


def test_saving_again_replaces_the_model(tmp_path):
    model = small_model()
    npllm.save(model, TOKENIZER, tmp_path)
    model.params.flat[0] = 7
    npllm.save(model, TOKENIZER, tmp_path)
    assert npllm.load(tmp_path)[0].params.flat[0] == 7


def test_every_verb_that_starts_from_a_model_takes_it(tmp_path, capsys, quick):
    model, saved = small_model(), tmp_path / "saved"
    npllm.save(model, TOKENIZER, saved)
    before, text = content(saved), write_text(tmp_path, n_lines=20)
    data = write_jsonl(tmp_path / "demonstrations.jsonl", DEMONSTRATIONS)
    assert run("generate", saved, "--max_tokens", 3) == 0
    assert run("evaluate", saved, "--data", text) == 0
    assert "perplexity" in capsys.readouterr().out
    assert run(*stage_arguments("sft", saved, tmp_path / "sft", data=data, train__steps=1)) == 0
    short = ["--train.steps", 1, "--batch.size", 2, "--batch.micro_size", 2]
    assert run("pretrain", "--from", saved, "--data.source", text, "--out", tmp_path / "on", *short) == 0
    assert npllm.load(tmp_path / "on")[0].config == model.config
    assert content(saved) == before


def test_what_only_a_run_has_is_missed_in_one_sentence(tmp_path, capsys):
    npllm.save(small_model(), TOKENIZER, tmp_path)
    assert "holds no validation text; name one with --data" in refused(capsys, "evaluate", tmp_path, exit_code=2)
    assert "is not a run (config.toml is missing)" in refused(capsys, "resume", tmp_path, exit_code=3)


def test_a_run_and_a_foreign_tokenizer_are_refused_and_nothing_is_written(tmp_path, finished):
    before = content(finished)
    with pytest.raises(ConfigError, match="is a run, whose files must stay as they are; choose another folder"):
        npllm.save(small_model(), TOKENIZER, finished)
    assert content(finished) == before
    with pytest.raises(ConfigError, match="The tokenizer has 2 tokens, but the model was made for 257"):
        npllm.save(small_model(), npllm.train_char(["ab"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        npllm.save(small_model(), TOKENIZER, tmp_path / "file")


def test_damage_is_refused(tmp_path):
    npllm.save(small_model(), TOKENIZER, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer.json cannot be read"):
        npllm.load(tmp_path)
    image = bytearray((tmp_path / "model.h5").read_bytes())
    image[-1] ^= 1
    (tmp_path / "model.h5").write_bytes(image)
    with pytest.raises(DataError, match="SHA-256"):
        npllm.load(tmp_path)


def test_a_file_of_that_name_in_a_run_is_not_its_model(tmp_path, finished):
    npllm.save(small_model(), TOKENIZER, tmp_path / "saved")
    (finished / "model.h5").write_bytes((tmp_path / "saved" / "model.h5").read_bytes())
    assert npllm.load(finished)[0].config.vocab_size < TOKENIZER.vocab_size
