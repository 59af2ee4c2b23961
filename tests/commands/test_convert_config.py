"""A config of TRL's becomes ours exactly, or is refused key by key with the way out."""

import json
import math
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from melior.cli import main
from melior.commands.trl.given import TRAINERS, defaults
from melior.commands.trl.losses import DPO_LOSSES
from melior.commands.trl.options import translate
from tests.peers.steady import steady_answers, steady_folder, steady_pairs

BASE = {"model_name_or_path": "org/model", "dataset_name": "org/pairs", "output_dir": "runs/a"}


def said(trainer="dpo", processes=1, **values):
    return translate(BASE | values, trainer, processes=processes)


def test_what_trl_takes_by_default_is_written_out():
    found = said()
    assert (found.command, found.refused, found.differences) == ("dpo", [], {})
    assert found.options == {
        "model": "org/model", "revision": "main", "trust_remote_code": False, "dtype": "bf16",
        "lora_r": 0, "data": ["org/pairs:train"], "max_length": 1024,
        "truncation_mode": "keep_start", "max_long_share": 1.0, "batch_size": 8, "beta": 0.1,
        "learning_rate": 1e-6, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "lr_scheduler_type": "linear",
        "warmup_ratio": 0.0, "out": "runs/a", "epochs": 3.0, "max_steps": 0,
        "gradient_checkpointing": True, "seed": 42, "save_steps": 500, "report_to": [],
    }  # fmt: skip


def test_the_batch_counts_accumulation_and_processes():
    found = said(per_device_train_batch_size=4, gradient_accumulation_steps=2, processes=8)
    assert found.options["batch_size"] == 64


@pytest.mark.parametrize("kind", DPO_LOSSES)
def test_each_loss_of_dpo_has_a_command(kind):
    found = said(loss_type=kind, beta="2e-1", label_smoothing=0.2, discopop_tau=0.07)
    command, names = DPO_LOSSES[kind]
    assert found.command == command and not found.refused
    values = {"beta": 0.2, "label_smoothing": 0.2, "discopop_tau": 0.07}
    for theirs, ours in names.items():
        assert found.options[ours] == values[theirs]
    has_smoothing = "label_smoothing" in names
    assert ("label_smoothing" in found.options) == has_smoothing
    assert any("ignores label_smoothing" in remark for remark in found.remarks) != has_smoothing


def test_trls_ipo_is_the_form_on_averages():
    found = said(loss_type=["ipo"], beta=0.3)
    assert found.command == "ipo-mean"
    assert found.options["tau"] == 0.3
    assert "beta" not in found.options


def test_a_likelihood_beside_the_loss_is_its_weight():
    found = said(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.3])
    assert (found.command, found.options["sft_weight"]) == ("dpo", 0.3)
    assert said(loss_type=["sigmoid", "sft"]).options["sft_weight"] == 1.0
    assert "micro-batches" not in found.differences
    assert "micro-batches" in said(loss_type=["sigmoid", "sft"], processes=2).differences


@pytest.mark.parametrize(
    ("values", "command", "options"),
    [
        ({"ld_alpha": 0.4}, "ld-dpo", {"alpha": 0.4}),
        ({"use_weighting": True}, "wpo", {"beta": 0.1}),
        ({"f_divergence_type": "js_divergence"}, "f-dpo", {"divergence": "jensen_shannon"}),
        ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}, "f-dpo",
         {"divergence": "alpha", "alpha": 0.7}),
    ],
)  # fmt: skip
def test_flags_that_make_another_method_become_its_command(values, command, options):
    found = said(**values)
    assert not found.refused
    assert found.command == command
    assert options.items() <= found.options.items()


def test_simpo_of_the_cpo_trainer_keeps_the_likelihood_that_trl_adds():
    found = said("cpo", loss_type="simpo", beta=2.0, simpo_gamma=1.0)
    assert found.command == "simpo"
    assert {"beta": 2.0, "gamma": 1.0, "sft_weight": 1.0}.items() <= found.options.items()
    assert any("(by default)" in remark for remark in found.remarks)
    found = said("cpo", loss_type="simpo", cpo_alpha=0.0)
    assert {"beta": 0.1, "gamma": 0.5, "sft_weight": 0.0}.items() <= found.options.items()
    assert found.remarks == said("cpo", cpo_alpha=0.0).remarks
    assert said("cpo").command == "cpo"


def test_orpos_beta_is_lambda_and_its_likelihood_differs():
    found = said("orpo", beta=0.25)
    assert found.command == "orpo"
    assert {"lam": 0.25, "sft_weight": 1.0}.items() <= found.options.items()
    assert set(found.differences) == {"orpo-prompts"}


def test_kto_keeps_its_weights():
    found = said("kto", desirable_weight=1.33, processes=2)
    assert found.command == "kto"
    assert found.options["desirable_weight"] == 1.33
    assert set(found.differences) == {"micro-batches"}
    assert said("kto", loss_type="apo_zero_unpaired").command == "apo-zero-unpaired"


def test_an_adapters_stabilised_scale_is_said_in_the_plain_one():
    adapter = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 9}
    found = said(**adapter)
    assert {"lora_r": 9, "lora_alpha": 32.0, "lora_dropout": 0.05, "lora_target_modules": []}.items(
    ) <= found.options.items()  # fmt: skip
    scaled = said(**adapter, use_rslora=True).options["lora_alpha"]
    assert scaled / 9 == pytest.approx(32 / math.sqrt(9))
    idle = said(lora_r=8)
    assert idle.options["lora_r"] == 0 and idle.idle == ["lora_r"]


def test_warm_ups_become_shares():
    assert said(warmup_steps=0.1).options["warmup_ratio"] == 0.1
    found = said(warmup_steps=10, max_steps=200)
    assert (found.options["warmup_ratio"], found.options["max_steps"]) == (0.05, 200)
    assert set(found.differences) == {"warm-up"}
    calm = said(warmup_steps=0.1, lr_scheduler_type="constant")
    assert (calm.options["warmup_ratio"], calm.differences) == (0.0, {})
    kept = said(warmup_steps=0.1, lr_scheduler_type="constant_with_warmup").options
    assert (kept["lr_scheduler_type"], kept["warmup_ratio"]) == ("constant", 0.1)


def test_mixtures_and_held_out_rows_become_sources():
    parts = [{"path": "a", "split": "train_prefs"}, {"path": "b"}]
    assert said(datasets=parts).options["data"] == ["a:train_prefs", "b:train"]
    found = said(eval_strategy="steps", dataset_test_split="held", logging_steps=5)
    assert found.options["eval_data"] == ["org/pairs:held"]
    assert found.options["eval_steps"] == 5


REFUSED = [
    ({"dtype": "bfloat16"}, "dtype: bfloat16: ", "bf16: true"),
    ({"fp16": True}, "fp16: true: ", "bf16: true"),
    ({"use_peft": True}, "lora_target_modules: ", "name the modules"),
    ({"use_peft": True, "lora_target_modules": "q", "use_dora": True}, "use_dora", "leave it out"),
    ({"load_in_4bit": True}, "load_in_4bit: True", "say false"),
    ({"dataset_config": "b"}, "dataset_config: ", "name them"),
    ({"datasets": [{"path": "a", "fraction": 0.5}]}, "found fraction", "name:split*share"),
    ({"eval_strategy": "epoch"}, "eval_strategy: epoch", "whole eval_steps"),
    ({"max_length": None}, "max_length: null", "give the model's own"),
    ({"truncation_mode": "keep_end"}, "truncation_mode: keep_end", "say keep_start"),
    ({"loss_type": "bco_pair"}, "loss_type: bco_pair", "have one"),
    ({"loss_type": "sigmoid_norm"}, "loss_type: sigmoid_norm", "have one"),
    ({"loss_type": ["sigmoid", "exo_pair", "sft"]}, "loss_type: sigmoid, exo_pair", "one loss"),
    ({"loss_type": ["sigmoid"], "loss_weights": [0.5]}, "loss_type: sigmoid", "of weight 1"),
    ({"loss_type": "ipo", "ld_alpha": 0.5}, "ld_alpha: ", "with loss_type sigmoid"),
    ({"ld_alpha": 0.5, "use_weighting": True}, "ld_alpha and use_weighting: ", "only alone"),
    ({"use_weighting": True, "loss_type": ["sigmoid", "sft"]}, "use_weighting: ", "leave sft out"),
    ({"weight_decay": 0.1}, "weight_decay: 0.1", "say 0"),
    ({"optim": "adafactor"}, "optim: adafactor", "say adamw_torch"),
    ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: polynomial", "one of linear"),
    ({"warmup_steps": 100}, "warmup_steps: 100", "give a share"),
    ({"warmup_ratio": 0.1}, "warmup_ratio: 0.1", "warmup_steps below 1"),
    ({"data_seed": 7}, "data_seed: ", "leave it out"),
    ({"save_strategy": "epoch"}, "save_strategy: epoch", "say steps"),
    ({"report_to": ["wandb", "mlflow"]}, "report_to: mlflow", "one or more of"),
    ({"dataloader_drop_last": True}, "dataloader_drop_last: True", "say false"),
    ({"disable_dropout": False}, "disable_dropout: False", "say true"),
    ({"sync_ref_model": True}, "sync_ref_model: True", "say false"),
    ({"neftune_noise_alpha": 5}, "neftune_noise_alpha: 5", "leave it out"),
    ({"num_processes": 8}, "num_processes: 8", "--world-size"),
    ({"lerning_rate": 1e-6}, "lerning_rate: 1e-06", "did you mean learning_rate?"),
    ({"cpo_alpha": 0.0}, "cpo_alpha: 0.0: TRL 1.16's dpo trainer does not know it", "leave it out"),
    ({"unheard_of": None}, "unheard_of: None", "leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "key", "way_out"), REFUSED)
def test_what_cannot_be_said_is_refused_once_with_the_way_out(values, key, way_out):
    (only,) = said(**values).refused
    assert key in only and way_out in only


@pytest.mark.parametrize(
    ("values", "trainer"),
    [({"loss_type": "hinge", "beta": 0.2}, "cpo"), ({"loss_type": "ipo"}, "cpo"),
     ({"alpha": 0.1, "loss_type": "simpo"}, "cpo")],
)  # fmt: skip
def test_losses_that_no_command_is_are_refused(values, trainer):
    (only,) = said(trainer, **values).refused
    assert "no command here is this loss" in only


def test_a_model_and_data_must_be_named():
    found = translate({}, "dpo", processes=1)
    assert [one.split(":")[0] for one in found.refused] == ["model_name_or_path", "dataset_name"]
    assert found.options["out"] == "trainer_output"


def test_what_has_no_effect_is_left_out_and_named():
    values = {"logging_steps": 5, "run_name": "a", "hub_token": "x", "warmup_steps": 0,
              "attn_implementation": "sdpa", "use_dora": False, "ld_alpha": None}  # fmt: skip
    found = said(**values)
    assert not found.refused
    assert found.idle == ["logging_steps", "run_name", "hub_token", "attn_implementation",
                          "use_dora"]  # fmt: skip
    assert found.options == said().options


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_config_of_nothing_but_defaults_is_that_of_an_empty_one(trainer):
    plain, full = said(trainer), said(trainer, **{**defaults(trainer), **BASE})
    assert (full.command, full.options, full.refused) == (plain.command, plain.options, [])


def test_the_defaults_are_trl_1_16s():
    table = json.loads((files("melior.commands.trl") / "defaults.json").read_text("utf-8"))
    assert (table["package"], table["version"]) == ("trl", "1.16.0")
    assert defaults("dpo")["learning_rate"] == 1e-6
    assert defaults("cpo")["cpo_alpha"] == 1.0
    assert defaults("kto")["train_sampling_strategy"] == "sequential"


def test_values_of_another_type_are_named():
    with pytest.raises(ValueError, match="beta: a number is needed; found 'much'"):
        said(beta="much")
    with pytest.raises(ValueError, match=r"seed: a whole number is needed; found 1\.5"):
        said(seed=1.5)
    with pytest.raises(ValueError, match="did you mean 'js_divergence'"):
        said(f_divergence_type="js_divergense")


@pytest.fixture
def convert(tmp_path, capsys):
    def run(values, *words, trainer="dpo", code=0):
        source = tmp_path / "trl.yaml"
        source.write_text(yaml.safe_dump(values), encoding="utf-8")
        out = tmp_path / "ours.yaml"
        line = ["convert-config", source, "--to", out, "--trainer", trainer, "--world-size", "1"]
        if code:
            with pytest.raises(SystemExit) as stopped:
                main([*map(str, line), *words])
            assert stopped.value.code == code
            return capsys.readouterr().err.strip()
        main([*map(str, line), *words])
        return capsys.readouterr().out.strip(), out.read_text(encoding="utf-8")

    return run


def test_the_file_says_what_it_is_and_the_command_is_printed(convert, tmp_path):
    printed, text = convert(BASE | {"logging_steps": 1, "warmup_steps": 0.1}, "--accept", "warm-up")
    assert printed == f"melior dpo --config {tmp_path / 'ours.yaml'}"
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "TRL 1.16's dpo trainer, world size 1" in comments[1]
    assert "Accepted: TRL's warm-up" in comments[2]
    assert comments[-1] == "# Left out, since nothing here depends on it: logging_steps."
    assert yaml.safe_load(text) == said(warmup_steps=0.1).options


def test_everything_refused_is_said_at_once_and_nothing_is_written(convert, tmp_path):
    message = convert(BASE | {"weight_decay": 0.1, "fp16": True, "warmup_steps": 0.1}, code=2)
    for part in ("weight_decay: 0.1", "fp16: true", "--accept warm-up"):
        assert part in message
    assert not (tmp_path / "ours.yaml").exists()


def test_ranges_of_ours_hold_for_what_trl_would_take(convert):
    assert "beta must be above 0; found -0.1" in convert(BASE | {"beta": -0.1}, code=2)


def test_a_file_that_is_there_is_spared(convert, tmp_path):
    (tmp_path / "ours.yaml").write_text("mine", encoding="utf-8")
    assert "--overwrite" in convert(BASE, code=2)
    convert(BASE, "--overwrite")


PEERS = Path(__file__).parents[1] / "peers" / "trl_runs.json"
RUNS = json.loads(PEERS.read_text(encoding="utf-8"))["rows"]
"""Whole runs of TRL on a tiny model, each batch all rows: options and the loss of each step."""


def learned(row, folder):
    """Convert the config of a run of TRL, run it here, and return the loss of each step."""
    model = steady_folder(folder / "model")
    data = (steady_answers if row["trainer"] == "kto" else steady_pairs)(folder / "data")
    names = {"model_name_or_path": str(model), "dataset_name": str(data), "output_dir": "runs/a"}
    (folder / "trl.yaml").write_text(yaml.safe_dump(row["values"] | names), encoding="utf-8")
    out = folder / "ours.yaml"
    main([
        "convert-config", str(folder / "trl.yaml"), "--to", str(out), "--trainer", row["trainer"],
        "--world-size", "1", "--accept", "half-sppo", "orpo-prompts",
    ])  # fmt: skip
    command = out.read_text(encoding="utf-8").split()[2]
    main([command, "--config", str(out), "--out", str(folder / "run"), "--n-samples", "0"])
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [step["loss"] for step in map(json.loads, lines)]


@pytest.mark.parametrize("row", RUNS, ids=[f"{i}-{row['trainer']}" for i, row in enumerate(RUNS)])
def test_a_converted_config_learns_as_trl_does(row, tmp_path):
    losses = learned(row, tmp_path)
    kind = str(row["values"].get("loss_type", ""))
    # Of a good answer, APO has a constant 1 there; half of the answers judged alone are good.
    constant = {"dpo": 1.0, "kto": 0.5}[row["trainer"]] if kind.startswith("apo") else 0.0
    theirs = [loss - constant for loss in row["losses"]]
    assert len(losses) == len(theirs) == 4
    if row["trainer"] == "orpo":  # likelihoods over other tokens: the difference that is accepted
        assert losses[0] != pytest.approx(theirs[0], rel=1e-3)
    elif row["trainer"] == "kto" and not kind:  # mismatched by another order of the rows
        assert losses[0] == pytest.approx(theirs[0], rel=1e-5)
    else:
        assert losses == pytest.approx(theirs, rel=1e-5, abs=1e-5)
