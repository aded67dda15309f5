"""Turns a seed into a server that nobody has written by hand, its traffic, and what is true of its memory.

A server has one to five routes, each of which keeps memory in a healthy manner, and a leaky one has one more. `shop.py`
holds what the routes do, and `app.py` hangs them into a framework. A small service route, `/kept`, which is asked last,
adds up what the leak really holds.
"""

import dataclasses
import math
import random

from . import frameworks, habits

# A leak is stopped when it holds so much: the machine is not ours alone.
MOST_KEPT = 200e6
MOST_REQUESTS = 8000
# Requests that leak, after which the report is looked at.
LOOKS = (250, 500, 1000, 2000)


@dataclasses.dataclass
class Leak:
    """What a leaky server's report has to name."""

    kind: str
    condition: str
    # Bytes that a leaking request keeps, as asked of the generator. What it really keeps is measured.
    size: int
    # The route as `drive` asks for it and as a report begins to write it: `/tickets/`.
    path: str
    outcome: str
    function: str
    # The share of all requests that are of the route and outcome: those that a report divides by.
    share: float

    @property
    def per_request(self):
        """Bytes that a request of the route and outcome keeps, as asked of the generator."""
        return self.size * (1 if self.outcome == "error" else habits.CONDITIONS[self.condition].leaking)


@dataclasses.dataclass
class Stranger:
    framework: str
    server: str
    python: str
    workers: int
    files: dict
    command: list
    plan: str
    # Requests in all after which the report is looked at.
    looks: list
    leak: Leak


def make(seed, number, leaky, pythons):
    """The server of that number. The same seed makes the same server."""
    chance = random.Random(f"{seed}/{'leaky' if leaky else 'healthy'}/{number}")
    framework = chance.choice(sorted(frameworks.FRAMEWORKS))
    server = chance.choice(frameworks.FRAMEWORKS[framework].servers)
    workers = chance.choice([1, 1, 2]) if frameworks.SERVERS[server].may_fork else 1
    names = chance.sample(habits.NAMES, k=6)
    leak, parts, paths = None, [], []

    healthy = [names.pop() for _ in range(chance.randint(1, 4 if leaky else 5))]
    weights = {name: chance.randint(1, 5) for name in healthy}
    if leaky:
        name = names.pop()
        # Between three and eight tenths of all requests.
        others = sum(weights.values())
        weights[name] = max(1, round(others * chance.uniform(0.43, 4)))
        leak, text = make_leak(chance, name, weights[name] / sum(weights.values()))
        parts.append(text)
        paths.append(name)
    total = math.exp(chance.uniform(math.log(500), math.log(4000))) if leak is None else MOST_REQUESTS
    if leak:
        per_request = leak.share * leak.per_request
        most = min(MOST_REQUESTS, max(300, MOST_KEPT / per_request))
        looks = sorted({round(min(look / leak.share, most)) for look in LOOKS})
    else:
        looks = sorted({round(total * part) for part in (0.25, 0.5, 1)})

    for name in healthy:
        # Caches and their like are full after a third of their route's requests at most: docs/decision.md says why.
        # A worker fills its own.
        requests = looks[-1] * weights[name] / sum(weights.values()) / workers
        parts.append(habits.make_healthy(chance, name, max(9, requests)))
        paths.append(name)

    files = {
        "shop.py": habits.HEAD + "\n\n".join(parts) + "\n",
        "app.py": frameworks.FRAMEWORKS[framework].application(chance, paths),
    }
    return Stranger(
        framework=framework,
        server=server,
        python=chance.choice(pythons),
        workers=workers,
        files=files,
        command=frameworks.SERVERS[server].command(workers),
        plan=make_plan(chance, weights),
        looks=looks,
        leak=leak,
    )


def make_leak(chance, name, share_of_route):
    kind = chance.choice(sorted(habits.LEAKS))
    condition = chance.choice(["always", "always", "errors", "one value"])
    size = round(math.exp(chance.uniform(math.log(64), math.log(2**20))))
    rule = habits.CONDITIONS[condition]
    # A report tells failing requests apart from the others, but not one value of a parameter from another.
    share = share_of_route * (rule.leaking if rule.outcome == "error" else 1)
    leak = Leak(kind, condition, size, f"/{name}/", rule.outcome, f"remember_{name}", share)
    return leak, habits.make_leaky(kind, name, size, rule)


def make_plan(chance, weights):
    rate = chance.choice([None, None, 250, 500])
    lines = [f"concurrency = {chance.choice([1, 2, 4, 8])}"] + ([f"rate = {rate}"] if rate else [])
    for name, weight in weights.items():
        lines += ["", "[[route]]", f'path = "/{name}/{{number}}"', f"weight = {weight}"]
        lines += ['parameters = { number = "1..1000000" }']
    return "\n".join(lines) + "\n"
