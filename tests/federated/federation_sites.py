"""Sites that add numbers, and the command that runs one: `python -m federated.federation_sites ADDRESS MODULE:FACTORY SETTINGS KEY CA`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

from tauon.errors import DataError, Interrupted, LaunchError
from tauon.federated import Message
from tauon.federated.flower import join, load_site


class Adder:
    """Adds its number to every tensor; counts its answers in a file, which outlives the process."""

    def __init__(self, amount: float, counter: str = "", seconds: float = 0.0) -> None:
        self.amount, self.counter, self.seconds = amount, Path(counter) if counter else None, seconds
        self.answers = int(self.counter.read_text()) if self.counter and self.counter.is_file() else 0

    def answer(self, message: Message) -> Message:
        if message.kind == "refuse":
            raise DataError("this site has no data of that kind")
        if message.kind == "fail":
            raise KeyError("patient 4711")
        if message.kind == "die":
            os.kill(os.getpid(), 9)
        if message.kind == "stop":
            raise Interrupted("the training was stopped, and saved")
        if message.kind == "large":
            return message.answer("large", {}, {"w": torch.randn(1_000_000)})
        if message.kind == "old":
            return Message("old", message.round - 1, message.nonce)
        time.sleep(float(message.fields.get("seconds", self.seconds)))
        self.answers += 1
        if self.counter:
            self.counter.write_text(str(self.answers))
        tensors = {name: t + self.amount for name, t in message.tensors.items()}
        return message.answer("added", {"answers": self.answers, "process": os.getpid()}, tensors)


def adder(**settings: object) -> Adder:
    torch.set_num_threads(1)
    return Adder(**settings)  # type: ignore[arg-type]


def main() -> None:
    address, path, settings, key, authority, *rest = sys.argv[1:]
    try:
        join(
            address,
            load_site(path, json.loads(settings)),
            key=Path(key),
            authority=Path(authority),
            recipe=rest[0] if rest else "",
            note=lambda text: print(text, flush=True),
        )
    except (Interrupted, LaunchError) as err:
        print(f"{type(err).__name__}: {err}", flush=True)
        sys.exit(err.exit_code)


if __name__ == "__main__":
    main()
