"""Time and bytes of a federated round of 10 sites and 1,000,000 parameters: secure aggregation against the plain weighted mean.

Both rounds carry the same messages as bytes (`Message.to_bytes`, `from_bytes`) between a coordinator and ten sites in this process, of which as many work at
once as this machine has cores: the sites' masks and checks share two cores here, and would have ten machines in a deployment. Training is a stand-in: each
site waits for `--training` seconds (all at once, as sites do) and returns an update that was drawn before.

    plain    weights to each site; its update and its number of examples back; the coordinator's weighted mean in float32
    secure   the same work by `secure_sum`: keys, shares, masked values, agreement, unmasking; sites verify signatures and hash the model

Counted: the time of the round at the coordinator, from the first message to the mean, and every byte that is sent. The two take turns, round by round; the
median counts. `ratio` is plain / secure: 0.5 means twice the time. `ratio_without_training` is that of rounds with no training at all, and
`training_for_floor_s` the seconds of training from which on the floor is kept. The mean must equal the plain one within the quantisation:
(sites / 2) steps / total weight, and float32's rounding of the plain sum (`error`, `error_allowed`). `lost_s` is a secure round without training in
which 30% of the sites vanish after they shared their secrets.

    python -m benchmarks.secagg_cost [--quick] [--training 1.0] [--sites 10] [--parameters 1000000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = 1.0


class Wire:
    """Carries bytes to sites in threads, and counts them."""

    def __init__(self, sites: Mapping[str, Any]) -> None:
        self.ends = sites
        self.pool = ThreadPoolExecutor(len(sites))
        self.bytes = 0
        self.lost: set[str] = set()

    def sites(self) -> list[str]:
        return sorted(self.ends)

    def ask(self, messages: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        from tauon.federated import Failure, Message

        gone = {n: Failure("lost") for n in messages if n in self.lost and messages[n].kind == "secagg/masked"}
        messages = {n: m for n, m in messages.items() if n not in gone}

        def one(name: str) -> tuple[bytes, int]:
            raw = messages[name].to_bytes()
            back = self.ends[name].answer(Message.from_bytes(raw)).to_bytes()
            return back, len(raw) + len(back)

        answers: dict[str, Any] = dict(gone)
        for name, (back, count) in zip(messages, self.pool.map(one, messages), strict=True):
            answers[name] = Message.from_bytes(back)
            self.bytes += count
        return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of each instead of 9")
    parser.add_argument("--training", type=float, default=SECONDS, help="seconds that a site trains (a wait)")
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    args = parser.parse_args()

    import torch

    from tauon.federated import Message
    from tauon.federated.secagg import Contribution, Identity, PinnedKeys, SecureSettings, SecureSite, Session, layout_of, secure_sum

    names = [f"site-{i}" for i in range(args.sites)]
    draws = torch.Generator().manual_seed(0)
    updates = {n: 0.01 * torch.randn(args.parameters, generator=draws) for n in names}
    examples = {n: float(torch.randint(100, 1001, (), generator=draws)) for n in names}
    weights = {"weights": torch.randn(args.parameters, generator=draws)}
    norm = max(float(u.norm()) for u in updates.values())
    pause = 0.0

    class Plain:
        def __init__(self, name: str) -> None:
            self.name = name

        def answer(self, message: Message) -> Message:
            time.sleep(pause)
            return message.answer("trained", {"examples": examples[self.name]}, {"weights": updates[self.name]})

    def contribute(name: str) -> Callable[[Message], Contribution]:
        def work(message: Message) -> Contribution:
            time.sleep(pause)
            return Contribution({"weights": updates[name] * examples[name]}, {"weight": examples[name]})

        return work

    identities = {n: Identity.generate() for n in names}
    pinned = PinnedKeys({n: i.public for n, i in identities.items()})
    secure = Wire({n: SecureSite(n, identities[n], PinnedKeys(pinned), contribute(n), run="bench") for n in names})
    plain = Wire({n: Plain(n) for n in names})
    layout = layout_of({"weights": (args.parameters,)}, len(names), norm=norm, weight=1000.0)

    def plain_round(number: int) -> Any:
        message = Message("train", number, "n", {"epochs": 1}, weights)
        answers = plain.ask(dict.fromkeys(names, message), timeout=60)
        total = torch.zeros(args.parameters)
        for answer in answers.values():
            total.add_(answer.tensors["weights"], alpha=answer.fields["examples"])
        return total / sum(a.fields["examples"] for a in answers.values())

    def secure_round(number: int) -> Any:
        work = Message("train", number, "n", {"epochs": 1}, weights)
        total = secure_sum(secure, names, work, layout, Session("bench", number), SecureSettings(pinned))
        return total.mean()["weights"]

    number, seconds, cpu = 0, {}, {}
    rounds = 3 if args.quick else 9
    for trained in (0.0, args.training):
        pause = trained
        for turn in range(rounds + 1):
            number += 1
            for kind, one in (("plain", plain_round), ("secure", secure_round)):
                start, start_cpu = time.perf_counter(), time.process_time()
                mean = one(number)
                if turn:  # the first is not counted
                    seconds.setdefault((kind, trained), []).append(time.perf_counter() - start)
                    cpu.setdefault((kind, trained), []).append(time.process_time() - start_cpu)
                if kind == "plain":
                    expected = mean
        for kind in ("plain", "secure"):
            took = seconds[kind, trained]
            print(
                f"{kind}, training {trained:g} s: {statistics.median(took):.3f} s a round ({min(took):.3f} to {max(took):.3f}), "
                f"processor {statistics.median(cpu[kind, trained]):.3f} s",
                flush=True,
            )
    sent, pause, lost = (secure.bytes // number, plain.bytes // number), 0.0, []
    secure.lost = set(names[: len(names) * 3 // 10])
    for _ in range(3):
        number += 1
        start = time.perf_counter()
        secure_round(number)
        lost.append(time.perf_counter() - start)
    exact = sum(updates[n].double() * examples[n] for n in names) / sum(examples.values())
    step = layout.step(layout.entries[0])
    allowed = (0.5 * len(names) * step + float(exact.abs().max()) * sum(examples.values()) * 2**-23) / sum(examples.values())
    error, plain_error = float((mean.double() - exact).abs().max()), float((expected.double() - exact).abs().max())
    median = {key: statistics.median(took) for key, took in seconds.items()}
    ours, peer = median["secure", args.training], median["plain", args.training]
    bare, bare_plain = median["secure", 0.0], median["plain", 0.0]
    result = {
        "claim": "secagg_cost", "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(peer / ours, 3), "floor": 0.5, "unit": "s/round",
        "training_s": args.training, "ratio_without_training": round(bare_plain / bare, 3), "overhead_s": round(bare - bare_plain, 3),
        "training_for_floor_s": round(max(0.0, bare - 2 * bare_plain), 3), "lost_s": round(statistics.median(lost), 3),
        "bytes": sent[0], "bytes_plain": sent[1],
        "ratio_bytes": round(sent[1] / sent[0], 4), "floor_bytes": round(1 / 1.1, 3), "error": error, "error_allowed": allowed,
        "error_plain": plain_error, "equal": error <= allowed,
    }  # fmt: skip
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}; step {step:.3g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
