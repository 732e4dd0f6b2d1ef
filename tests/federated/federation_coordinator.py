"""A coordinator that sums what sites answer, with a checkpoint of its own: `python -m federated.federation_coordinator ADDRESS FOLDER ROUNDS SECONDS`."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path

import torch

from tauon.federated import Message
from tauon.federated.flower import serve


def main() -> None:
    address, folder, rounds, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    checkpoint = folder / "coordinator.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.is_file() else {"round": 0, "value": 0.0}
    torch.set_num_threads(1)
    with serve(
        address, folder=folder, roster=folder / "roster", recipe="ab" * 32, note=lambda text: print(text, flush=True)
    ) as coordinator:
        print(f"continues after round {state['round']}", flush=True)
        coordinator.wait_for(2, timeout=60)
        while state["round"] < rounds:
            number, nonce = state["round"] + 1, secrets.token_hex(16)
            sites = coordinator.sites()
            asked = {
                name: Message("add", number, nonce, {"seconds": seconds}, {"w": torch.full((1000,), state["value"])}) for name in sites
            }
            answers = coordinator.ask(asked, timeout=20)
            good = {name: answer for name, answer in answers.items() if isinstance(answer, Message)}
            failed = {name: answer.reason for name, answer in answers.items() if not isinstance(answer, Message)}
            if len(good) < 2:
                print(f"round {number} is repeated: {failed}", flush=True)
                time.sleep(0.5)
                continue
            mean = sum(float(answer.tensors["w"].mean()) for answer in good.values()) / len(good)
            state = {"round": number, "value": mean}
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(json.dumps(state))
            os.replace(partial, checkpoint)
            told = {name: answer.fields for name, answer in good.items()}
            print(json.dumps({"round": number, "value": mean, "sites": told, "failed": failed}), flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
