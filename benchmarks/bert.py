"""Time and memory to linearise a network of BERT's size, in a process of its own."""

import json
import sys
from typing import Any

import torch
import transformers
from torch import nn

import kpflow as kp
from kpflow.states.capture import capture
from kpflow.states.prepare import trainable

from .measures import peak_gib
from .timing import measured

TRIALS, TOKENS = 2, 64


def measure(device: torch.device) -> dict[str, Any]:
    """Seconds to capture the graph, and to linearise the network in all; what the process held before and at most."""
    model = transformers.BertForSequenceClassification(transformers.BertConfig()).eval().to(device)
    tokens = torch.randint(0, 30_000, (TRIALS, TOKENS), generator=torch.Generator().manual_seed(0)).to(device)
    kp.linearise(nn.Linear(2, 2), torch.zeros(2, 2))  # what torch.export imports on its first call
    before = peak_gib()
    trained = trainable(model.named_parameters())
    with torch.no_grad():
        _, capturing = measured(lambda: capture(model, tokens, trained), device)
    lin, linearising = measured(lambda: kp.linearise(model, tokens), device)
    size = model.config
    return {
        "problem": f"BERT, {size.num_hidden_layers} layers, {size.hidden_size} wide, {TRIALS} × {TOKENS}",
        "states": lin.space.size,
        "parameters": lin.parameters.size,
        "capture_seconds": capturing.wall,
        "capture_cpu_seconds": capturing.cpu,
        "linearise_seconds": linearising.wall,
        "linearise_cpu_seconds": linearising.cpu,
        "gib_before": before,
        "peak_gib": peak_gib(),
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(measure(torch.device(sys.argv[1]))))
