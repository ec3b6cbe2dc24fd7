"""Do the remedies work that warnings and errors name? Runs that go wrong, and the same with what is said to be tried.

python bench/remedies.py

What is said is applied, for three times at most, over 2,000 steps or more, until nothing is. A run is well then if its
samples spread as the data do and its codes as the prior: bench/defaults.py.
"""

from __future__ import annotations

import argparse
import ast
import re

import defaults

SGD = {"optimizer": "sgd", "lr_reconstruction": 0.01, "lr_adversarial": 0.1, "init_std": 0.01}
BROKEN = [  # data, steps, and how its run goes wrong
    *((name, steps, SGD) for name in ("moons", "digits", "wine", "breast cancer") for steps in (300, 2000)),
    *((name, 300, {**SGD, "init_std": 0.3}) for name in ("digits", "wine")),
    *((name, 300, {**SGD, "lr_reconstruction": 1.0}) for name in ("moons", "wine", "digits")),
    *((name, 300, {"lr_reconstruction": rate}) for name in ("moons", "digits", "wine") for rate in (0.1, 1.0, 1e3)),
    *((name, 300, {"lr_adversarial": rate}) for name in ("moons", "digits", "wine") for rate in (0.01, 0.1, 1e3)),
    ("faces", 1000, {"lr_adversarial": 1e-3}),
    ("moons", 300, {"init_std": 1.0}),
    ("digits", 300, {"init_std": 1.0}),
    ("moons", 1000, {"style_dim": 8}),
    ("wine", 1000, {"style_dim": 30}),
    ("digits", 300, {"style_dim": 30}),
    ("digits", 1000, {"regularizer": "kl", "posterior": "gaussian"}),
    ("digits", 1000, {"regularizer": "kl", "posterior": "gaussian", "prior_std": 1.0}),
    ("wine", 2000, {"prior_std": 0.1}),
    ("digits", 300, {"prior_std": 1e6}),
    ("digits", 300, {"lr_reconstruction": 1e-9}),
    ("moons", 300, {"lr_reconstruction": 1e-6}),
    ("digits", 300, {"dropout": 0.95}),
    ("digits", 1000, {"regularizer": "kl", "posterior": "gaussian", "regularizer_weight": 1000.0}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--only", nargs="*", type=int, help="numbers of rows, from 0")
    asked = parser.parse_args()
    kinds = defaults.kinds()
    well = told = 0
    print("| data | steps | fields | what is said, and tried | well |\n|" + "---|" * 5)
    for k, (name, steps, fields) in enumerate(BROKEN):
        if asked.only and k not in asked.only:
            continue
        tried, words = fields, []
        for _ in range(3):
            rows = defaults.measured(
                name,
                kinds[name],
                (asked.width, asked.width),
                tried,
                steps if tried is fields else max(steps, defaults.STEPS),
            )
            said = rows[0]["said"]
            words.append(said or f"nothing; code_std {', '.join(format(r['code_std'], '.2g') for r in rows)}")
            found = re.search(r"; try (.*?)(?=; |$)", said)
            if not found:
                break
            call = ast.parse(f"f({found[1]})", mode="eval").body
            tried = {**tried, **{field.arg: ast.literal_eval(field.value) for field in call.keywords}}
        good = all(r.get("alive", False) for r in rows)
        well, told = well + good, told + (len(words) > 1)
        print(f"| {name} | {steps} | {fields} | {' <br> '.join(words)} | {good} |", flush=True)
    print(f"{told} told of, {well} well in the end")


if __name__ == "__main__":
    main()
