"""Every number of a comparison again, from the rows of samples.parquet: it shares the definitions with alignbench, and no code."""
import itertools, json, math, numpy as np, pyarrow.parquet as pq
from scipy import optimize, stats
def load(file): return json.loads(pq.read_metadata(file).metadata[b"alignbench"]), pq.read_table(file).to_pylist()
def grid(rows, who, metric, split="test", epoch=None):  # [P,K]
    own = sorted((r["prompt_id"], r["k"], r[metric]) for r in rows if (r["who"], r["split"]) == (who, split) and epoch in (None, r["epoch"]))
    return np.array([value for *_, value in own]).reshape(len({prompt for prompt, *_ in own}), -1)
def interval(stat, seeds, prompts, made, null=0.0, low=-math.inf, high=math.inf, least=0.0):  # stat: of how often seeds and prompts count
    rng, ones, every = np.random.Generator(np.random.PCG64(made["seed"])), [np.ones(n) for n in seeds], np.ones(prompts)
    of_prompts, *of_seeds = [rng.multinomial(n, np.full(n, 1 / n), size=made["replicates"]) for n in (prompts, *seeds)]
    value, e_p = stat(ones, every), np.std([stat(ones, w) for w in of_prompts]) * math.sqrt(prompts / (prompts - 1))
    e = [np.std([stat([*ones[:m], w, *ones[m + 1:]], every) for w in of_seeds[m]]) * math.sqrt(n / max(n - 1, 1)) for m, n in enumerate(seeds)]
    freedom = math.hypot(*e) ** 4 / sum(one**4 / max(n - 1, 1) for one, n in zip(e, seeds)) if any(e) else 1.0  # Welch's
    e_s, freedom = (least, sum(seeds) - len(seeds)) if math.hypot(*e) < least else (math.hypot(*e), freedom)
    reach = lambda tail: math.hypot(stats.t.isf(tail, freedom) * e_s, stats.t.isf(tail, prompts - 1) * e_p)
    gap, half = abs(value - null), reach((1 - made["level"]) / 2)
    p = math.exp(optimize.brentq(lambda q: reach(math.exp(q) / 2) - gap, -690, 0, xtol=1e-15, rtol=1e-14)) if gap > 0 else 1.0
    return {"value": value, "low": max(value - half, low), "high": min(value + half, high), "p": p}, half + reach(1 - made["power"])
mean = lambda y: lambda s, w: s[0] @ y @ w / (s[0].sum() * w.sum())  # of [S,P]
middle = lambda y: lambda s, w: stats.trim_mean(np.repeat(y.ravel(), np.outer(s[0], w).ravel().astype(int)), 0.25)
def area(x, y, limit):  # under the best y at x or less, over 0
    knots = sorted({0.0, limit, *(min(at, limit) for at in x)})
    return sum((b - a) * max([0.0, *(high for at, high in zip(x, y) if at <= a)]) for a, b in itertools.pairwise(knots))
def recompute(runs, by, made):  # runs: name of a row -> its folders; by: the metric that ranks; made: level, replicates, seed, power
    cells, told = {name: [load(folder) for folder in folders] for name, folders in runs.items()}, {}
    get = lambda name, metric, who="policy": np.stack([grid(rows, who, metric) for _, rows in cells[name]])
    for name, own in cells.items():
        label, epochs = {m["name"]: m["label"] for m in own[0][0]["metrics"]}, sorted({r["epoch"] for r in own[0][1] if r["split"] == "validation"})
        start, z, P = {m: get(name, m, "reference")[0] for m in label}, {}, len(get(name, by)[0])
        path = {m: np.array([np.mean([grid(rows, "policy", m, "validation", e).mean() for _, rows in own]) for e in epochs]) for m in label}
        d = np.sqrt(path["kl"][path["kl"] > 0])
        for m in label:
            y, best = get(name, m), get(name, m, "peak")
            for part, table in {"mean": y, "change": y - start[m], "peak change": best - start[m], "peak gained": best - y}.items():
                told[name, m, part], told[name, m, part, "detectable"] = interval(mean(table.mean(2)), [len(own)], P, made)
            told[name, m, "change_iqm"] = interval(middle((y - start[m]).mean(2)), [len(own)], P, made)[0]
            fit = np.linalg.lstsq(np.stack([d, -d * np.log(d)], 1), (path[m] - path[m][0])[path["kl"] > 0])[0]
            told |= {(name, m, "reference"): start[m].mean(), (name, m, "along"): path[m] - path[m][0], (name, m, "fit"): fit}
            z |= {m: ((y - start[m]) / start[m].std()).mean(2)} if start[m].std() > 0 else {}
        gap = lambda role: z[next(m for m in z if label[m] == "trained")] - np.mean([z[m] for m in z if label[m] == role], 0)
        told |= {(name, role): interval(mean(gap(role)), [len(own)], P, made)[0] for role in ("held out", "gold")}
    beats = lambda a, b: (np.greater(a, b) + np.equal(a, b) / 2).mean(-1)
    y = {**{name: get(name, by) for name in cells}, "reference": get(name, by, "reference")[:1]}
    moved, kl = {name: (y[name] - y["reference"]).mean(2) for name in y}, {name: get(name, "kl").mean(2) for name in cells}
    for a, b in itertools.combinations(y, 2):
        h = beats(y[a][:, None], y[b][None]).squeeze(tuple(axis for axis, each in enumerate((a, b)) if each == "reference"))  # [A,B,P] or [S,P]
        ones = [(one, other) for each in (a, b) for one, other in itertools.combinations(y[each], 2)]
        q, (*real, _) = np.mean([(beats(one, other).mean() - 0.5) ** 2 for one, other in ones] or [0.0]), h.shape
        least = math.sqrt(q / max(real) if min(real) == 1 or len(real) == 1 else q * (sum(real) + 1) / (3 * math.prod(real)))
        stat = lambda s, w: np.einsum(h, range(h.ndim), *itertools.chain(*([v, [i]] for i, v in enumerate([*s, w])))) / math.prod(v.sum() for v in [*s, w])
        shares = [np.mean(test(y[a][:, None], y[b][None])) for test in (np.greater, np.equal, np.less)]
        told[a, b, "wins"] = shares, interval(stat, real, P, made, 0.5, 0, 1, least)[0]
        stat = lambda s, w: mean(moved[a])(s, w) - mean(moved[b])(s[1:], w)
        told[a, b] = interval(stat, [len(moved[a]), len(moved[b])], P, made)
    for n, p in enumerate(ps := sorted(told[a, b][0]["p"] for a, b in itertools.combinations(y, 2))):
        told["holm", p] = max(told.get(("holm", ps[n - 1]), 0.0) if n else 0.0, min(1.0, p * (len(ps) - n)))
    for own in (*([name] for name in cells), sorted(cells, key=lambda name: kl[name].mean())):  # one setting a method, then all
        stat = lambda s, w: area(*([mean(t[c])(s[i:], w) for i, c in enumerate(own)] for t in (kl, moved)), 1.1 * max(t.mean() for t in kl.values()))
        told["front", *sorted(own)] = interval(stat, [len(kl[c]) for c in own], P, made)[0]
    return told
