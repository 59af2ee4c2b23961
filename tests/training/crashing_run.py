"""A small run with dropout and a generator, to be killed and resumed: FOLDER [--resume]."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from melior.options import LoopOptions, OptimConfig
from melior.training.checkpoint import Checkpoints, Generators
from melior.training.hooks import every
from melior.training.loop import Interrupted, descend, fit
from melior.training.run import Run

TOTAL = 40


@dataclass(frozen=True)
class Config:
    loop: LoopOptions
    optim: OptimConfig


def main(folder: str, resume: bool) -> None:
    config = Config(LoopOptions(folder, save_steps=3), OptimConfig(learning_rate=1e-2))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 1))
    model[0].bfloat16()
    own = torch.Generator().manual_seed(1)

    def objective(rows):
        time.sleep(0.002)  # leaves time to be killed in
        noise = torch.randn(rows.shape, generator=own)
        hidden = model[0]((rows + noise).bfloat16()).float()
        return model[1:](hidden).square().mean() / 2, {"noise": float(noise.mean())}

    def batches(start):
        for index in range(start, TOTAL):
            rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(index))
            yield [rows[:8], rows[8:]]

    command = ["python", *sys.argv[:2]]
    with Run.create(folder, "test", config, command, resume=resume) as run:
        step = descend(objective, dict(model.named_parameters()), config.optim, total_steps=TOTAL)
        parts = {"step": step, "random": Generators({"own": own})}
        checkpoints = Checkpoints(run.folder / "checkpoints", parts, about={"data": "x"})
        start, note = checkpoints.restore() if resume else (0, "")
        run.rewind(start)
        print("start", start, note, flush=True)
        hooks = [run.append, every(config.loop.save_steps, checkpoints.save, last=TOTAL)]
        fit(step, batches(start), hooks=hooks, start=start, save=checkpoints.save)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(str(Path(sys.argv[1])), "--resume" in sys.argv)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
