"""A chat server in a process of its own that answers by plain transformers: PORT_FILE FOLDER.

It speaks as much of OpenAI's protocol as sampling needs, log-probabilities of the sampled tokens
among it, and loads another folder when it is told to: POST /load {"folder": ...}. None of melior is
in it, so that what it says of its weights is another program's word.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOCK = threading.Lock()
HELD = {}


def hold(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    HELD.update(tokenizer=tokenizer, model=model, asked=0)


def drawn(tokenizer, said, logits, draw):
    """Draw a token that keeps the text readable as just these tokens, if a few tries find one.

    Trained models hardly write others; random weights write half characters.
    """
    for _ in range(60):
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=draw))
        text = tokenizer.decode([*said, token], skip_special_tokens=True)
        is_end = token == tokenizer.eos_token_id
        if is_end or tokenizer(text, add_special_tokens=False).input_ids == [*said, token]:
            break
    return token


@torch.no_grad()
def answer(body):
    """One answer, drawn token by token, with the log-probability of each at temperature 1."""
    tokenizer, model = HELD["tokenizer"], HELD["model"]
    text = tokenizer.apply_chat_template(
        body["messages"], tokenize=False, add_generation_prompt=True
    )
    row = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    draw, said, found, ended = torch.Generator().manual_seed(body["seed"]), [], [], False
    while len(said) < body["max_tokens"] and not ended:
        logits = model(torch.cat([row, torch.tensor([said], dtype=torch.long)], 1)).logits[0, -1]
        token = drawn(tokenizer, said, logits / body["temperature"], draw)
        said.append(token)
        found.append(float(logits.log_softmax(-1)[token]))
        ended = token == tokenizer.eos_token_id
    tokens = zip(said, found, strict=True)
    return {
        "message": {"content": tokenizer.decode(said, skip_special_tokens=True)},
        "finish_reason": "stop" if ended else "length",
        "logprobs": {"content": [{"token": str(t), "logprob": p} for t, p in tokens]},
    }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            if self.path == "/load":
                hold(body["folder"])
                self.reply({})
                return
            HELD["asked"] += 1
            if HELD["asked"] > int(os.environ.get("DIES_AFTER", "1000000")):
                os._exit(1)
            self.reply({"choices": [answer({**body, "seed": body.get("seed", 0) + i})
                                    for i in range(body.get("n", 1))]})  # fmt: skip

    def reply(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    hold(sys.argv[2])
    http = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "0"))), Handler)
    Path(sys.argv[1]).write_text(str(http.server_port))
    http.serve_forever()
