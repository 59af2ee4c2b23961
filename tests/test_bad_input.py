"""What users type wrongly, row by row: one sentence that says where, what, and the way out."""

import gzip
import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from melior.cli import main
from tests.tiny import tiny_folder

GOOD = [
    {"prompt": f"say {i}", "chosen": f"the number is {i}", "rejected": f"no {i} fox"}
    for i in range(12)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("bad") / "tiny")


@pytest.fixture
def pairs(tmp_path):
    return written(tmp_path / "pairs.jsonl", GOOD)


def written(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail, and return its one sentence."""

    def run(*words, code=2):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        said = capsys.readouterr()
        assert stopped.value.code == code
        lines = said.err.strip().splitlines()
        assert lines[-1].startswith("melior: ")
        assert "Traceback" not in said.err
        return lines[-1]

    return run


def dpo(model, data, tmp_path, *more):
    return ("dpo", "--model", model, "--data", data, "--out", tmp_path / "run", *more)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--beta", "-0.1"], "beta must be above 0; found -0.1"),
        (["--beta", "0"], "beta must be above 0"),
        (["--beta", "nan"], "beta must be above 0; found nan"),
        (["--label-smoothing", "0.5"], "label_smoothing must be at least 0 and below 0.5"),
        (["--learning-rate", "0"], "learning_rate must be above 0"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--epochs", "-1"], "epochs must be above 0"),
        (["--max-length", "1"], "max_length must be at least 2"),
        (["--lora-r", "-1"], "lora_r must be at least 0"),
        (["--lerning-rate", "1"], "--lerning-rate is not an option; did you mean --learning-rate?"),
        (["--lerning_rate=1"], "--lerning_rate is not an option; did you mean --learning-rate?"),
        (["--beta", "much"], "--beta: could not convert string to float: 'much'"),
        (["--dtype", "fp16"], "invalid choice 'fp16' for argument '--dtype'"),
        (["--batch-size", "2.5"], "--batch-size"),
        (["--resume"], "a run to resume is needed; found none"),
        (["--lora-alpha", "8"], "lora_r must be above 0 where other lora options are given"),
        (["--chat-template", "no.jinja"], "no.jinja: a chat template must be"),
    ],
)
def test_options_out_of_range_are_refused(refused, model, pairs, tmp_path, words, needed):
    assert needed in refused(*dpo(model, pairs, tmp_path, *words))
    assert not (tmp_path / "run").exists()


def test_simpo_takes_one_target_margin(refused, model, pairs, tmp_path):
    words = ("--gamma", "1", "--gamma-beta-ratio", "0.5")
    said = refused("simpo", "--model", model, "--data", pairs, "--out", tmp_path / "r", *words)
    assert "gamma and gamma_beta_ratio say the same: give one" in said


def test_a_loss_of_another_command_is_named(refused):
    assert "did you mean 'simpo'?" in refused("sinpo")
    assert "needs one of check, stats, convert, show" in refused("data", "chek")


def test_standard_input_cannot_be_trained_on(refused, model, tmp_path):
    assert "data must lie in files" in refused(*dpo(model, "-", tmp_path))


def test_names_of_other_tools_are_taken_and_a_file_is_a_data_set(model, pairs, tmp_path):
    main([
        "dpo", "--model_name_or_path", str(model), "--dataset_name", str(pairs),
        "--output_dir", str(tmp_path / "run"), "--num_train_epochs", "1", "--max_steps", "1",
        "--dtype", "fp32", "--n_samples", "0",
    ])  # fmt: skip
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "finished"


def test_a_missing_option_is_named(refused, model, pairs):
    assert "--out" in refused("dpo", "--model", model, "--data", pairs)


def test_a_missing_file_is_named_with_the_nearest(refused, model, pairs, tmp_path):
    said = refused(*dpo(model, tmp_path / "pair.jsonl", tmp_path))
    assert "pair.jsonl: no such file or folder; did you mean" in said


def test_an_unknown_model_is_named_with_the_nearest(refused, model, pairs, tmp_path):
    said = refused(*dpo(model.parent / "tini", pairs, tmp_path))
    assert "found no such folder; did you mean" in said


def test_an_adapter_on_no_layer_names_those_there_are(refused, model, pairs, tmp_path):
    words = ("--lora-r", "2", "--lora-target-modules", "x_proj", "--n-samples", "0")
    said = refused(*dpo(model, pairs, tmp_path, *words))
    assert "lora_target_modules must name linear layers" in said
    assert "which are down_proj, gate_proj, k_proj" in said


def test_a_folder_without_a_model_says_what_it_lacks(refused, pairs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(*dpo(tmp_path / "empty", pairs, tmp_path))


def test_a_damaged_model_is_one_sentence(refused, pairs, tmp_path):
    folder = tiny_folder(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    said = refused(*dpo(folder, pairs, tmp_path))
    assert "cannot be loaded as a causal language model" in said


@pytest.mark.parametrize("text", ["{}", "{nope", '{"model": {"type": "none"}}'])
def test_a_damaged_tokenizer_is_one_sentence(refused, pairs, tmp_path, text):
    folder = tiny_folder(tmp_path / "cut")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    assert "its tokenizer does not load" in refused(*dpo(folder, pairs, tmp_path))


def test_weights_that_are_no_numbers_are_told_before_training(refused, pairs, tmp_path):
    folder = tiny_folder(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("norm.weight"))
    weights[name][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(*dpo(folder, pairs, tmp_path, "--n-samples", "1"))
    assert "probabilities must be finite; found nan" in said


@pytest.mark.parametrize("command", ["dpo", "train-reward"])
def test_rows_longer_than_the_model_has_positions_are_refused(refused, tmp_path, command):
    folder = tiny_folder(tmp_path / "gpt2", "gpt2")
    data = written(tmp_path / "pairs.jsonl", [row | {"prompt": "word " * 600} for row in GOOD])
    _, *words = dpo(folder, data, tmp_path, "--max-length", "5000", "--n-samples", "0")
    said = refused(command, *words)
    assert "max_length must be at most the 1024 positions that the model has" in said


def test_a_model_or_adapter_in_a_pickle_is_not_opened(refused, model, pairs, tmp_path):
    folder, adapter = tiny_folder(tmp_path / "whole"), tmp_path / "adapter"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(*dpo(folder, pairs, tmp_path))
    adapter.mkdir()
    named = {"base_model_name_or_path": str(model), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(named), encoding="utf-8")
    torch.save({}, adapter / "adapter_model.bin")
    assert "needs adapter_model.safetensors" in refused("merge", adapter, "--out", tmp_path / "m")
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    said = refused("merge", adapter, "--out", tmp_path / "m")
    assert "adapter_config.json: needs 'base_model_name_or_path'" in said


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([], "found no row"),
        ([{"prompt": "a", "chosen": "b", "reject": "c"}], "did you mean 'reject'"),
        ([{"prompt": "a", "chosen": 3, "rejected": "c"}], "pairs.jsonl:1"),
        ([*GOOD, '{"prompt": "cut off'], "pairs.jsonl:13"),
        ([*GOOD, "[1, 2]"], "pairs.jsonl:13"),
    ],
)
def test_unreadable_rows_are_named(refused, model, tmp_path, rows, needed):
    data = written(tmp_path / "pairs.jsonl", rows)
    assert needed in refused(*dpo(model, data, tmp_path))


def test_a_truncated_gz_is_named(refused, model, tmp_path):
    data = tmp_path / "pairs.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in GOOD * 200).encode())
    data.write_bytes(whole[: len(whole) // 2])
    assert "pairs.jsonl.gz" in refused(*dpo(model, data, tmp_path))


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"rejected": "the number is 1", "chosen": "the number is 1"}, "equal"),
        ({"rejected": ""}, "empty"),
        ({"rejected": [{"role": "user", "content": "no"}]}, "turn of the assistant; found user"),
    ],
)
def test_data_that_would_train_silently_is_refused(refused, model, tmp_path, change, needed):
    data = written(tmp_path / "pairs.jsonl", [row | change for row in GOOD])
    said = refused(*dpo(model, data, tmp_path))
    assert needed in said
    assert "pairs.jsonl:1" in said


def test_rows_that_are_too_long_are_counted_and_refused(refused, model, tmp_path):
    rows = [*GOOD[:6], *({**row, "prompt": "word " * 200} for row in GOOD[6:])]
    data = written(tmp_path / "pairs.jsonl", rows)
    said = refused(*dpo(model, data, tmp_path, "--max-length", "64"))
    assert "6 rows (50.0%)" in said
    assert "max_length" in said
    record = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert len(record["train"]["left_out"]) == 6


def test_all_rows_too_long_says_which_option(refused, model, pairs, tmp_path):
    said = refused(*dpo(model, pairs, tmp_path, "--max-length", "4"))
    assert "all 12 rows are longer than max_length 4" in said


def test_held_out_prompts_that_are_trained_on_are_refused(refused, model, pairs, tmp_path):
    said = refused(*dpo(model, pairs, tmp_path, "--eval-data", pairs))
    assert "held-out" in said


def test_a_failed_start_does_not_block_the_next(refused, model, pairs, tmp_path):
    refused(*dpo(model, pairs, tmp_path, "--max-length", "4"))
    quick = ("--dtype", "fp32", "--max-steps", "1", "--n-samples", "0")
    main([str(word) for word in dpo(model, pairs, tmp_path, *quick)])
    assert "a folder without a run is needed" in refused(*dpo(model, pairs, tmp_path, *quick))


def test_a_config_file_with_a_wrong_name_is_refused(refused, model, pairs, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("lerning_rate: 1e-6\n", encoding="utf-8")
    said = refused(*dpo(model, pairs, tmp_path, "--config", config))
    assert "run.yaml: 'lerning_rate' is not an option; did you mean 'learning_rate'?" in said


def test_a_flag_overrides_the_config_file(model, pairs, tmp_path):
    config = tmp_path / "run.yaml"
    lines = f"model: {model}\ndata: {pairs}\nbeta: 0.3\nmax_steps: 1\nn_samples: 0\ndtype: fp32\n"
    config.write_text(lines, encoding="utf-8")
    out = tmp_path / "run"
    main(["dpo", "--config", str(config), "--beta", "0.7", "--output_dir", str(out)])
    kept = (out / "config.yaml").read_text(encoding="utf-8")
    assert "beta: 0.7" in kept
    assert "max_steps: 1" in kept


def test_a_run_that_turns_non_finite_stops_and_names_the_rows(refused, model, pairs, tmp_path):
    # Steps of 1e30 blow the weights up: the step after cannot be finite.
    words = ("--learning-rate", "1e30", "--dtype", "fp32", "--n-samples", "0", "--batch-size", "4")
    said = refused(*dpo(model, pairs, tmp_path, *words, "--warmup-ratio", "0"))
    assert "must be finite; found" in said
    assert "pairs.jsonl:" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["status"] == "failed"


@pytest.mark.parametrize("words", [["--help"], ["dpo", "--lerning-rate", "1"], ["dpo", "--data"]])
def test_help_and_mistakes_load_no_torch(words):
    code = (
        "import sys\nfrom melior.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'heavy'"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.monotonic() - started < 20  # a hang, not a timing


def test_half_a_character_is_named(refused, model, tmp_path):
    rows = [*GOOD, '{"prompt": "a", "chosen": "b", "rejected": "c\\ud83d"}']
    data = written(tmp_path / "pairs.jsonl", rows)
    said = refused(*dpo(model, data, tmp_path))
    assert "pairs.jsonl:13: contents need to be text; found half of a character" in said


def test_a_device_that_is_not_there_is_named(refused, model, pairs, tmp_path):
    said = refused(*dpo(model, pairs, tmp_path, "--device", "foo"))
    assert "device 'foo': needs to be one that torch can use here" in said


def test_a_run_folder_under_a_file_is_refused(refused, model, pairs):
    said = refused("dpo", "--model", model, "--data", pairs, "--out", pairs / "run")
    assert "a folder is needed for the run; found a file" in said


def test_overwriting_never_deletes_what_the_run_needs(refused, model, pairs, tmp_path):
    quick = ("--dtype", "fp32", "--max-steps", "1", "--n-samples", "0")
    main([str(word) for word in dpo(model, pairs, tmp_path, *quick)])
    trained = tmp_path / "run" / "model"
    said = refused(*dpo(trained, pairs, tmp_path, *quick, "--overwrite"))
    assert "--overwrite would delete" in said
    bad = written(tmp_path / "bad.jsonl", [row | {"rejected": ""} for row in GOOD])
    assert "empty" in refused(*dpo(model, bad, tmp_path, *quick, "--overwrite"))
    assert (trained / "model.safetensors").exists()
