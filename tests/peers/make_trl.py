"""Freeze what TRL's own loss code says of given log-probabilities, for `tests/losses`.

Run inside an environment made from `benchmarks/requirements-trl.txt`, not in melior's:
`python tests/peers/make_trl.py`. It writes `trl_preference.json`, `trl_reference_free.json`,
`trl_unpaired.json` and `trl_weights.json` beside itself: rows by loss, under TRL's own names and
options. The log-probabilities are drawn in float64 and handed to TRL's trainers in the model's
place, so that what is frozen is its losses and nothing else; agreement on whole models is measured
by `benchmarks/preference_step.py`.

TRL ignores label smoothing for its loss type `sigmoid`: its rows have none.
"""

import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

HERE = Path(__file__).parent
N = 6
"""Pairs a row."""
LENGTHS = {"chosen": [1, 2, 3, 4, 2, 5], "rejected": [3, 2, 1, 4, 5, 1]}
"""Tokens of each answer, where a loss looks at tokens."""


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    draw = torch.Generator().manual_seed(0)
    betas = (0.01, 0.1, 0.5, 2.0)
    smoothed = [{"beta": beta, "label_smoothing": e} for beta in (0.1, 0.5) for e in (0.1, 0.3)]
    plain = [{"beta": beta} for beta in betas]
    divergences = [{"f_divergence_type": name} for name in ("forward_kl", "js_divergence")]
    divergences += [
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": a} for a in (0.3, 0.5)
    ]
    preference = {
        "sigmoid": plain,
        "hinge": plain,
        "ipo": [{"beta": beta} for beta in (0.1, 1.0)],
        "robust": smoothed,
        "exo_pair": smoothed,
        "nca_pair": plain,
        "sppo_hard": plain,
        "aot": [*plain, *smoothed],
        "apo_zero": plain,
        "apo_down": plain,
        "discopop": [{"beta": 0.1}, {"beta": 0.5, "discopop_tau": 0.2}],
        "f_divergence": [{"beta": 0.1, **divergence} for divergence in divergences],
    }
    save("trl_preference", {name: dpo_rows(name, rows, draw) for name, rows in preference.items()})
    weighing = {
        "ld_alpha": [{"beta": 0.1, "ld_alpha": alpha} for alpha in (0.0, 0.3, 1.0)],
        "use_weighting": [{"beta": beta, "use_weighting": True} for beta in (0.1, 0.5)],
    }
    save("trl_weights", {name: dpo_rows(name, rows, draw) for name, rows in weighing.items()})
    save("trl_reference_free", reference_free(draw))
    save("trl_unpaired", {name: unpaired_rows(name, draw) for name in ("kto", "apo_zero_unpaired")})


def save(name: str, rows: dict[str, list[dict]]) -> None:
    content = {
        "package": "trl",
        "version": trl.__version__,
        "script": "tests/peers/make_trl.py",
        "rows": rows,
    }
    (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_numbers(scale: float, draw: torch.Generator) -> torch.Tensor:
    """Log-probabilities; some pairs far apart, so that both tails are held."""
    spread = torch.tensor([0.05, 0.3, 1.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    noise = torch.randn(N, generator=draw, dtype=torch.float64) * spread
    return -scale * (1.0 + noise.abs())


def dpo_rows(name: str, rows: list[dict], draw: torch.Generator) -> list[dict]:
    """Rows of a loss of `DPOTrainer`; a divergence and the weights come with the loss sigmoid."""
    is_option = name in ("f_divergence", "ld_alpha", "use_weighting")
    return [dpo_row("sigmoid" if is_option else name, options, draw) for options in rows]


def dpo_row(loss_type: str, options: dict, draw: torch.Generator) -> dict:
    """One pair at a time through `DPOTrainer.compute_loss`, which averages over its batch.

    AOT is a loss of whole batches: all pairs go in together, and their average comes out.
    """
    # A likelihood ratio of e^-80 is nothing to freeze: 1 / u overflows, here as there.
    scale = 2.0 if "f_divergence_type" in options else 20.0
    tokens = {
        f"{model}_{side}": split_up(draw_numbers(scale, draw), LENGTHS[side], draw)
        for model in ("policy", "reference")
        for side in ("chosen", "rejected")
    }
    if options.get("f_divergence_type") == "alpha_divergence":  # TRL knows no bound for float64
        tokens = {name: [answer.float() for answer in answers] for name, answers in tokens.items()}
    squares = {
        side: [-torch.rand(length, generator=draw, dtype=torch.float64) for length in lengths]
        for side, lengths in LENGTHS.items()
    }
    trainer = dpo_trainer(loss_type=[loss_type], **options)
    parts = [list(range(N))] if loss_type == "aot" else [[i] for i in range(N)]
    losses = [dpo_loss(trainer, tokens, squares, part) for part in parts]
    listed = {name: [answer.tolist() for answer in answers] for name, answers in tokens.items()}
    if options.get("use_weighting"):
        for side, answers in squares.items():
            listed[f"log_sum_square_{side}"] = [answer.tolist() for answer in answers]
    return {**listed, "options": options, "losses": losses}


def split_up(totals: torch.Tensor, lengths: list[int], draw: torch.Generator) -> list[torch.Tensor]:
    """Share out each answer's log-probability among its tokens."""
    shares = [torch.rand(length, generator=draw, dtype=torch.float64) + 0.1 for length in lengths]
    return [total * share / share.sum() for total, share in zip(totals, shares, strict=True)]


def dpo_loss(trainer: trl.DPOTrainer, tokens: dict, squares: dict, part: list[int]) -> float:
    def batch(kind: dict, *names: str) -> torch.Tensor:
        return padded([kind[name][i] for name in names for i in part])

    policy = batch(tokens, "policy_chosen", "policy_rejected")
    reference = batch(tokens, "reference_chosen", "reference_rejected")
    log_sum_square = batch(squares, "chosen", "rejected")
    is_answer = padded([torch.ones(LENGTHS[side][i]) for side in LENGTHS for i in part])
    mask = torch.cat([torch.zeros(len(is_answer), 1), is_answer], dim=1).long()
    trainer.ref_model = answering(reference, log_sum_square)
    inputs = {
        "input_ids": mask + 1,
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
    }
    return trainer.compute_loss(answering(policy, log_sum_square), inputs).item()


def padded(answers: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)


def answering(log_probs: torch.Tensor, squares: torch.Tensor):
    """Return what stands in a model's place: it says these log-probabilities of the tokens."""
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs,
        log_sum_sq_probs=squares,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
    )
    return lambda **_: outputs


def dpo_trainer(**options) -> trl.DPOTrainer:
    """Return a real trainer, whose model is never asked."""
    words = {"<pad>": 0, "a": 1, "b": 2, "c": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>", unk_token="<pad>"
    )
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    data = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    with tempfile.TemporaryDirectory() as scratch:
        settings = trl.DPOConfig(
            scratch, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, **options
        )
        return trl.DPOTrainer(
            LlamaForCausalLM(config),
            ref_model=LlamaForCausalLM(config),
            args=settings,
            train_dataset=data,
            processing_class=fast,
        )


def reference_free(draw: torch.Generator) -> dict[str, list[dict]]:
    simpo = [
        {"beta": beta, "simpo_gamma": gamma, "label_smoothing": smoothing}
        for beta, gamma in ((2.0, 0.5), (2.5, 1.4), (10.0, 3.0))
        for smoothing in (0.0, 0.1)
    ]
    cpo = [{"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.3, "label_smoothing": 0.2}]
    return {
        "simpo": [cpo_row("simpo", options, 1.0, draw) for options in simpo],
        "sigmoid": [cpo_row("sigmoid", options, 20.0, draw) for options in cpo],
        "hinge": [cpo_row("hinge", {"beta": beta}, 1.0, draw) for beta in (0.5, 2.0)],
        "orpo": [orpo_row(beta, draw) for beta in (0.1, 1.0)],
    }


def cpo_row(loss_type: str, options: dict, scale: float, draw: torch.Generator) -> dict:
    """All pairs at once through `CPOTrainer.cpo_loss`, which leaves them apart."""
    chosen, rejected = draw_numbers(scale, draw), draw_numbers(scale, draw)
    neutral = {"alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0}
    device = SimpleNamespace(device="cpu")
    settings = SimpleNamespace(**(neutral | options), loss_type=loss_type, accelerator=device)
    losses, _, _ = CPOTrainer.cpo_loss(settings, chosen, rejected)
    sides = {"policy_chosen": chosen.tolist(), "policy_rejected": rejected.tolist()}
    return {**sides, "options": options, "losses": losses.tolist()}


def orpo_row(beta: float, draw: torch.Generator) -> dict:
    """`ORPOTrainer.odds_ratio_loss` computes in float32 and returns what its caller subtracts."""
    chosen, rejected = draw_numbers(0.5, draw), draw_numbers(0.5, draw)
    settings = SimpleNamespace(beta=beta, accelerator=SimpleNamespace(device="cpu"))
    gains = ORPOTrainer.odds_ratio_loss(settings, chosen, rejected)[0]
    sides = {"policy_chosen": chosen.tolist(), "policy_rejected": rejected.tolist()}
    return {**sides, "options": {"beta": beta}, "losses": [-gain for gain in gains.tolist()]}


def unpaired_rows(loss_type: str, draw: torch.Generator) -> list[dict]:
    weights = ((1.0, 1.0), (1.33, 0.7))
    return [unpaired_row(loss_type, beta, *pair, draw) for beta in (0.1, 0.5) for pair in weights]


def unpaired_row(
    loss_type: str, beta: float, desirable: float, undesirable: float, draw: torch.Generator
) -> dict:
    """One answer at a time through `KTOTrainer._compute_loss`, on the same mismatched answers."""
    policy, reference, mismatched = (draw_numbers(20.0, draw) for _ in range(3))
    mismatched_reference = mismatched - 0.7 * torch.randn(N, generator=draw, dtype=torch.float64)
    labels = [True, False, True, True, False, False]
    losses = []
    for i, label in enumerate(labels):
        settings = SimpleNamespace(
            model=SimpleNamespace(training=False),
            accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
            _compute_kl_logps=lambda *_: mismatched,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=loss_type == "kto",
            loss_type=loss_type,
            beta=beta,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            _metrics={"eval": defaultdict(list)},
            _total_train_tokens=0,
        )
        mask = torch.tensor([[0, 1]])
        inputs = {
            "label": torch.tensor([label]),
            "input_ids": mask + 1,
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_logps": reference[i : i + 1],
            "ref_KL_logps": mismatched_reference,
        }
        model = answering(policy[i : i + 1, None], torch.zeros(1, 1))
        losses.append(KTOTrainer._compute_loss(settings, model, inputs, False).item())
    assert all(math.isfinite(loss) for loss in losses)
    return {
        "log_ratio": (policy - reference).tolist(),
        "mismatched": (mismatched - mismatched_reference).tolist(),
        "labels": labels,
        "options": {
            "beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable
        },
        "losses": losses,
    }  # fmt: skip


if __name__ == "__main__":
    main()
