"""`--checkpoint best|last|STEP`: a verb uses a chosen checkpoint of a run."""

import json
import shutil

import pytest
from small_runs import checkpoints, content, pretrain_arguments, refused, run, write_text

pytestmark = pytest.mark.usefixtures("quick")

STEPS = [0, 3, 6, 9]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with checkpoints of STEPS. By its manifest that of step 3 is the best."""
    folder = tmp_path_factory.mktemp("trained")
    every = {"train__checkpoint_every": 3, "train__eval_every": 9, "train__keep": 9, "model__block_size": 64}
    words = pretrain_arguments(write_text(folder), folder / "run", train__steps=9, optim__lr=0.05, **every)
    assert run(*words) == 0
    assert [path.name for path in checkpoints(folder / "run")] == [f"step-{step:08d}.h5" for step in STEPS]
    judge(folder / "run", {3: 0.5, 6: 0.7})
    return folder / "run"


def judge(run_folder, losses: dict[int, float | None]) -> None:
    """Set validation losses in the manifest of a run."""
    manifest = run_folder / "checkpoints" / "manifest.json"
    document = json.loads(manifest.read_text())
    for step, loss in losses.items():
        document["checkpoints"][f"step-{step:08d}.h5"]["val_loss"] = loss
    manifest.write_text(json.dumps(document))


def shown(capsys, verb, *arguments) -> tuple[str, str]:
    """Standard output and standard error."""
    capsys.readouterr()
    assert run(verb, *arguments) == 0
    return capsys.readouterr()


@pytest.mark.parametrize(("choice", "step"), [("best", 3), ("last", 9), ("6", 6), ("0", 0), ("0006", 6)])
@pytest.mark.parametrize(("verb", "options"), [("generate", ["--max_tokens", 40]), ("evaluate", [])])
def test_the_chosen_checkpoint_is_used_and_named(trained, capsys, verb, options, choice, step):
    """Its name goes to standard error: standard output is the result."""
    file = trained / "checkpoints" / f"step-{step:08d}.h5"
    results = {each: shown(capsys, verb, checkpoints(trained)[i], *options)[0] for i, each in enumerate(STEPS)}
    assert len(set(results.values())) == len(STEPS)
    before = content(trained)
    out, err = shown(capsys, verb, trained, "--checkpoint", choice, *options)
    assert out == results[step]
    assert err == f"npllm: The weights are those of {file}.\n"
    assert content(trained) == before


def test_without_the_option_the_last_is_used_and_nothing_is_said(trained, capsys):
    last = shown(capsys, "evaluate", trained, "--checkpoint", "last")[0]
    assert shown(capsys, "evaluate", trained) == (last, "")


def test_the_best_is_found_without_a_manifest(trained, tmp_path, capsys):
    """From the files themselves, of which the first and the last have a loss."""
    out = shutil.copytree(trained, tmp_path / "run")
    (out / "checkpoints" / "manifest.json").unlink()
    assert "step-00000009.h5" in shown(capsys, "evaluate", out, "--checkpoint", "best")[1]


def test_a_best_checkpoint_whose_file_is_gone_gives_way_to_the_next(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "run")
    (out / "checkpoints" / "step-00000003.h5").unlink()
    assert "step-00000006.h5" in shown(capsys, "evaluate", out, "--checkpoint", "best")[1]


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ("7", "has no checkpoint of step 7; give one of these steps: 0, 3, 6, 9."),
        ("newest", "--checkpoint is 'newest'; give best, last, or the number of a step."),
        ("", "--checkpoint is ''; give best, last, or the number of a step."),
        ("9" * 5000, f"--checkpoint is '{'9' * 79}; give best, last, or the number of a step."),
    ],
)
def test_what_cannot_be_chosen(trained, capsys, choice, complaint):
    assert refused(capsys, "generate", trained, f"--checkpoint={choice}", exit_code=2).endswith(complaint)


def test_a_checkpoint_file_leaves_nothing_to_choose(trained, capsys):
    file = checkpoints(trained)[0]
    message = refused(capsys, "generate", file, "--checkpoint", "best", exit_code=2)
    expected = f"{file} is a checkpoint already; leave out --checkpoint, or name the folder of its run."
    assert message == f"npllm: {expected}"


def test_without_a_validation_loss_there_is_no_best(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "run")
    judge(out, dict.fromkeys(STEPS))
    message = refused(capsys, "evaluate", out, "--checkpoint", "best", exit_code=2)
    expected = f"No checkpoint of {out} has a validation loss; give last, or the number of a step."
    assert message == f"npllm: {expected}"


def test_a_run_without_checkpoints_and_what_is_no_run(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "run")
    for path in checkpoints(out):
        path.unlink()
    assert "has no checkpoint; train the run first" in refused(
        capsys, "generate", out, "--checkpoint", "best", exit_code=3
    )
    assert "is not a folder" in refused(capsys, "generate", tmp_path / "no", "--checkpoint", "best", exit_code=3)
