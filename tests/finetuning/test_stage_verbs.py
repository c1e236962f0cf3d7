"""The later stages on the command line: help, `resume`, `verify` and error messages."""

import hashlib
import io
import shlex
import shutil
from collections import namedtuple

import pytest
from small_runs import checkpoints, content, refused, run, summary, untimed_metrics
from stage_runs import DEMONSTRATIONS, PREFERENCES, PROMPTS, pretrained, stage_arguments, write_jsonl

import npllm.finetuning.sft
from npllm.cli import main
from npllm.data.records import read_preferences
from npllm.errors import ResourceError
from npllm.model import ModelConfig
from npllm.model.footprint import fixed_bytes
from npllm.runs.checkpoint import load_checkpoint
from npllm.training.available import Left
from npllm.training.stages import STAGES

pytestmark = pytest.mark.usefixtures("quick")

SMALL_PPO = {"ppo__rollout_size": 4, "ppo__max_tokens": 4, "ppo__group": 2, "train__steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of each stage, and records for all of them."""
    folder = tmp_path_factory.mktemp("stages")
    write_jsonl(folder / "demonstrations.jsonl", DEMONSTRATIONS)
    write_jsonl(folder / "preferences.jsonl", PREFERENCES)
    write_jsonl(folder / "prompts.jsonl", PROMPTS)
    pretrained(folder)
    for verb in ("sft", "reward", "dpo", "ppo"):
        assert run(*words_of(verb, folder, folder / verb)) == 0
    return folder


def words_of(verb, folder, out, **changes) -> list[str]:
    """A command line of the verb that works."""
    if verb == "sft":
        files = {"data": folder / "demonstrations.jsonl"}
        return stage_arguments(verb, folder / "pretrained", out, **files | changes)
    if verb == "ppo":
        files = {"reward": folder / "reward", "prompts": folder / "prompts.jsonl"}
        return stage_arguments(verb, folder / "sft", out, **SMALL_PPO | files | changes)
    return stage_arguments(verb, folder / "sft", out, **{"data": folder / "preferences.jsonl"} | changes)


@pytest.fixture
def copy(folder, tmp_path):
    """A run of npllm sft to damage."""
    return shutil.copytree(folder / "sft", tmp_path / "run")


def test_the_list_of_verbs_has_those_of_the_later_stages(capsys):
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for verb, stage in STAGES.items():
        assert f" {verb} {stage.summary}" in shown


@pytest.mark.parametrize("verb", STAGES)
def test_every_verb_explains_itself(verb, capsys):
    """The help of a verb starts with its line in the list of verbs."""
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: npllm {verb} [OPTIONS]")
    assert "(default: " in shown
    assert STAGES[verb].summary.rstrip(".") in " ".join(shown.split())


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "ppo"])
def test_the_next_command_works_as_it_is_printed(folder, tmp_path, capsys, monkeypatch, verb):
    """The name of the run needs quotes in a shell. A reward model goes on with PPO,
    which the test makes shorter."""
    assert run(*words_of(verb, folder, tmp_path / "a run")) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: ")]
    program, *arguments = shlex.split(line.removeprefix("Next: "))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # npllm chat asks there
    monkeypatch.chdir(tmp_path)
    short = ["--train.steps", 2, "--ppo.rollout_size", 4, "--batch.size", 4, "--batch.micro_size", 4]
    assert (program, run(*arguments, *(short if verb == "reward" else []))) == ("npllm", 0)
    assert (tmp_path / "runs" / "ppo").exists() == (verb == "reward")


def test_a_finished_run_says_so_and_shows_its_results_again(folder, capsys):
    assert run("resume", folder / "reward") == 0
    shown = capsys.readouterr().out
    assert "reward is finished: all" in shown
    assert "held-out pairs rightly" in shown


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_terminal_shows_that_a_stage_is_evaluated(folder, capsys, monkeypatch, stage):
    monkeypatch.setenv("TERM", "xterm")
    for variable, is_shown in {"FORCE_COLOR": True, "NO_COLOR": False}.items():  # the first one stands for a terminal
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert run("resume", folder / stage) == 0
        assert ("evaluating" in capsys.readouterr().out) == is_shown


@pytest.mark.parametrize("stage", ["pretrained", "sft", "reward", "dpo", "ppo"])
def test_a_finished_run_can_be_trained_further(folder, tmp_path, capsys, stage):
    """With a larger train.steps in its config.toml, to a number of updates. Resumed as
    it is, it names the verb for minutes."""
    out = shutil.copytree(folder / stage, tmp_path / "run")
    config, n = out / "config.toml", summary(out)["steps"]
    assert run("resume", out) == 0
    assert f"To train it further: npllm extend {out} --minutes 3" in capsys.readouterr().out
    config.write_text(config.read_text().replace(f"\nsteps = {n}\n", f"\nsteps = {n + 3}\n"))
    assert run("resume", out) == 0
    assert f"going on after step {n} of {n + 3}" in capsys.readouterr().out
    assert summary(out)["steps"] == n + 3
    assert [record["step"] for record in untimed_metrics(out)] == list(range(1, n + 4))
    assert run("verify", out) == 0
    # The first update takes longer than this budget, and so is the last.
    assert run("extend", out, "--minutes", "1e-9") == 0
    assert summary(out)["steps"] == n + 4
    assert run("verify", out) == 0


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_resume_goes_to_the_stage_that_made_the_run(folder, tmp_path, stage):
    """From its first checkpoint the run goes on, with the losses of its stage."""
    out = shutil.copytree(folder / stage, tmp_path / "run")
    for name in ("metrics.jsonl", "summary.json", "checkpoints/manifest.json"):
        (out / name).unlink()
    for path in checkpoints(out)[1:]:
        path.unlink()
    assert run("resume", out) == 0
    assert untimed_metrics(out) == untimed_metrics(folder / stage)


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_no_prompt_is_on_both_sides(folder, stage):
    """Each prompt has two pairs, and both are on the same side."""
    sides = [read_preferences(folder / stage / "data" / f"{name}.jsonl") for name in ("train", "val")]
    train, val = ({preference.prompt for preference in side} for side in sides)
    assert (len(train), len(val)) == (5, 1)
    assert not train & val


@pytest.mark.parametrize("stage", ["rlhf", "chat", "", "main"])
def test_an_unknown_stage_is_refused(copy, capsys, stage):
    config = copy / "config.toml"
    config.write_text(config.read_text().replace('stage = "sft"', f'stage = "{stage}"'))
    expected = f"config.toml names the unknown stage '{stage}'; restore the config.toml of the run."
    assert expected in refused(capsys, "resume", copy, exit_code=2)


def test_the_config_of_another_stage_is_refused(copy, folder, capsys):
    shutil.copy(folder / "reward" / "config.toml", copy)
    refused(capsys, "resume", copy, exit_code=3)
    config = copy / "config.toml"
    config.write_text(config.read_text().replace('stage = "reward"', 'stage = "sft"'))
    assert "reward.val_fraction is not a field" in refused(capsys, "resume", copy, exit_code=2)


REFUSED = {
    "no such run": ("sft", {}, "pretrain", 3, "is not a folder"),
    "no demonstrations": ("sft", {"data": "absent.jsonl"}, None, 3, "absent.jsonl"),
    "a file of another stage": (
        "sft",
        {"data": "preferences.jsonl"},
        None,
        3,
        "line 1: the field 'response' is missing",
    ),
    "no preferences": ("reward", {"data": "demonstrations.jsonl"}, None, 3, "line 1: the field 'chosen' is missing"),
    "dpo without preferences": ("dpo", {"data": "prompts.jsonl"}, None, 3, "line 1: the field 'chosen' is missing"),
    "no prompts": ("ppo", {"prompts": "absent.jsonl"}, None, 3, "absent.jsonl"),
    "reward without stop token": ("reward", {}, "pretrained", 2, "<|endoftext|>"),
    "dpo without stop token": ("dpo", {}, "pretrained", 2, "<|endoftext|>"),
    "another tokenizer": ("ppo", {"reward": "pretrained"}, None, 3, "have different tokenizers"),
    "no reward model": ("ppo", {"reward": "sft"}, None, 3, "holds no reward model"),
    "lora on another reward model": ("ppo", {"adapt__lora_rank": 2}, None, 2, "train the reward model with it"),
    "minibatches that do not fit": ("ppo", {"ppo__rollout_size": 6}, None, 2, "no multiple of batch.size"),
    "sft of a reward model": ("sft", {}, "reward", 2, "reward is a reward model, which only judges texts"),
    "dpo of a reward model": ("dpo", {}, "reward", 2, "reward is a reward model, which only judges texts"),
    "ppo of a reward model": ("ppo", {}, "reward", 2, "reward is a reward model, which only judges texts"),
    "ppo without steps": ("ppo", {"train__steps": None}, None, 2, "set train.steps"),
    "responses that do not fit": ("ppo", {"ppo__max_tokens": 32}, None, 2, "set it below model.block_size = 32"),
    "a prompt that does not fit": ("ppo", {"ppo__max_tokens": 22}, None, 3, "line 5: it has 14 tokens, more than"),
    "an unknown method": ("ppo", {"ppo__method": "a2c"}, None, 2, "a2c"),
    "an option of another verb": ("dpo", {"ppo__clip": 0.1}, None, 2, "--ppo.clip is not an option of npllm dpo"),
}


@pytest.mark.parametrize(("verb", "changes", "base", "exit_code", "complaint"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence(folder, tmp_path, capsys, verb, changes, base, exit_code, complaint):
    """No folder is left, so the command can be repeated."""
    files = {name: folder / changes[name] for name in ("data", "prompts", "reward") if name in changes}
    words = words_of(verb, folder, tmp_path / "run", **changes | files)
    if base:
        words[1] = str(folder / base)
    assert complaint in refused(capsys, *words, exit_code=exit_code)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_a_reward_model_does_not_write(folder, capsys, monkeypatch, verb):
    monkeypatch.setattr("sys.stdin", None)
    expected = (
        f"npllm: {folder / 'reward'} is a reward model, which only judges texts (npllm score); take the run that it "
        "was trained from, or another of npllm pretrain, sft, ppo or dpo."
    )
    assert refused(capsys, verb, folder / "reward", exit_code=2) == expected


def test_a_run_is_never_written_over(folder, capsys):
    before = content(folder / "sft")
    assert "holds a run already" in refused(capsys, *words_of("sft", folder, folder / "sft"), exit_code=2)
    assert content(folder / "sft") == before


@pytest.mark.parametrize("what", ["a run", "notes"])
def test_a_run_that_is_refused_takes_nothing_else_with_it(folder, tmp_path, capsys, monkeypatch, what):
    """A file or folder that appears at the run's path meanwhile is not deleted."""
    out, real = tmp_path / "run", npllm.finetuning.sft.scan

    def read(path, record):
        if what == "a run":
            shutil.copytree(folder / "sft", out)
            for checkpoint in checkpoints(out):
                checkpoint.unlink()
        else:
            out.mkdir()
        (out / "notes.txt").write_text("mine")
        return real(path, record)

    monkeypatch.setattr(npllm.finetuning.sft, "scan", read)
    refused(capsys, *words_of("sft", folder, out), exit_code=2)
    assert (out / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def verified(capsys, path) -> dict[str, str]:
    """The verdict of `npllm verify` on each file."""
    capsys.readouterr()
    run("verify", path)
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {name.rstrip(":"): " ".join([verdict, *why]) for verdict, name, *why in lines}


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_sound_run_is_found_sound(folder, capsys, stage):
    found = verified(capsys, folder / stage)
    assert set(found.values()) == {"ok"}
    files = set(content(folder / stage))
    assert set(found) == files
    assert run("verify", folder / stage) == 0


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[-9] ^= 1
    path.write_bytes(damaged)


def replace_with(data):
    return lambda path: path.write_bytes(data)


DAMAGES = {
    "model": ("models/policy.h5", flip_a_bit, "its SHA-256 is not the one that it records"),
    "short model": ("models/policy.h5", replace_with(b""), "is not a whole checkpoint"),
    "checkpoint": ("checkpoints/step-00000006.h5", flip_a_bit, "its SHA-256 is not the one that it records"),
    "records": ("data/train.jsonl", flip_a_bit, "train.jsonl does not have the hash in SHA256SUMS beside it"),
    "no records": ("data/val.jsonl", replace_with(b""), "val.jsonl does not have the hash in SHA256SUMS beside it"),
    "config": ("config.toml", replace_with(b"[optim\n"), "is not valid TOML"),
}


@pytest.mark.parametrize(("name", "damage", "complaint"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named(copy, capsys, name, damage, complaint):
    damage(copy / name)
    found = verified(capsys, copy)
    assert found[name].startswith("damaged ")
    assert complaint in found[name]
    belonging = {"summary.json"} if "checkpoints" in name else set()  # it is checked against the checkpoint
    assert {other for other, verdict in found.items() if verdict != "ok"} == {name} | belonging
    assert run("verify", copy) == 3


def test_models_and_records_that_are_gone_are_missed(copy, capsys):
    for name in ("models", "data"):
        shutil.rmtree(copy / name)
    damaged = {name for name, verdict in verified(capsys, copy).items() if verdict != "ok"}
    assert damaged == {"models/policy.h5", "data/train.jsonl", "data/val.jsonl", "data/SHA256SUMS"}


def test_a_file_of_records_that_is_gone_is_missed(copy, capsys):
    (copy / "data" / "val.jsonl").unlink()
    found = verified(capsys, copy)
    assert "names 'val.jsonl', which is missing" in found["data/SHA256SUMS"]


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_run_does_not_go_on_with_other_records(folder, tmp_path, capsys, stage):
    path = shutil.copytree(folder / stage, tmp_path / "run")
    records = path / "data" / ("prompts.jsonl" if stage == "ppo" else "train.jsonl")
    flip_a_bit(records)
    message = refused(capsys, "resume", path, exit_code=3)
    assert f"{records} does not have the hash in SHA256SUMS beside it; put back the file" in message


def test_the_list_of_hashes_is_one_that_sha256sum_reads(folder):
    lines = (folder / "sft" / "data" / "SHA256SUMS").read_text().splitlines()
    files = [folder / "sft" / "data" / f"{name}.jsonl" for name in ("train", "val")]
    assert lines == [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "ppo"])
def test_what_the_machine_has_no_room_for_is_refused(folder, tmp_path, capsys, monkeypatch, verb):
    """It is refused before the first step. No folder is left, so the command can be
    repeated."""
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(1000))
        message = refused(capsys, *words_of(verb, folder, tmp_path / "run"), exit_code=5)
        assert "checkpoints need" in message
        assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr("npllm.training.memory.memory_left", lambda root: Left(0, "nothing"))
        message = refused(capsys, *words_of(verb, folder, tmp_path / "run"), exit_code=5)
        assert "Training needs" in message
        assert not (tmp_path / "run").exists()


def test_ppo_needs_memory_for_all_that_it_holds(folder, tmp_path, capsys, monkeypatch):
    """These are policy, critic, reference and reward model, and the keys and values of
    all responses at once."""
    counted = []

    def refuse(memory):
        counted.append(memory)
        raise ResourceError("Refused.")

    monkeypatch.setattr("npllm.training.stage.check_memory", refuse)
    for rollout_size in (4, 400):
        refused(capsys, *words_of("ppo", folder, tmp_path / "run", ppo__rollout_size=rollout_size), exit_code=5)
    few, many = counted
    checkpoint = load_checkpoint(checkpoints(folder / "ppo")[-1])
    tables = fixed_bytes(ModelConfig(**checkpoint.description["model"]), "float32")  # of rotary positions
    assert few.weights == many.weights == 2 * checkpoint.arrays["params"].nbytes + 4 * tables
    longest_prompt = 9  # characters
    of_a_response = 2 * 4 * checkpoint.description["model"]["n_embd"] * (longest_prompt + SMALL_PPO["ppo__max_tokens"])
    assert many.passes - few.passes > 396 * of_a_response


def test_a_run_whose_checkpoints_are_there_needs_no_room_for_them(copy, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(1000))
    assert run("resume", copy) == 0


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_other_verbs_take_such_a_run(folder, capsys, stage):
    capsys.readouterr()
    assert run("generate", folder / stage, "--prompt", "the cat", "--max-tokens", 3) == 0
    assert capsys.readouterr().out.startswith("the cat")
    text = folder / "text.txt"
    assert run("evaluate", folder / stage, "--data", text) == 0
    assert "bits per byte" in capsys.readouterr().out
