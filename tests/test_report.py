"""The report: its statistics by hand, its page by parsing what it shows."""

import hashlib
import html
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import scipy.stats

from fedunlearn.errors import DataError
from fedunlearn.report import (
    Estimate,
    ReportInput,
    estimate,
    format_estimate,
    gap_to_retrain,
    latex_table,
    markdown_table,
    render_report,
    seed_distance,
    summarise,
    tabulate,
)
from fedunlearn.report.clients import shown_clients
from fedunlearn.report.names import markdown, short
from fedunlearn.report.placement import Box, place
from fedunlearn.report.svg import inline

ROUNDS, CLIENTS, CLASSES = 30, 10, 10
# name: forget accuracy, test accuracy, l2, share of retrain's client-rounds
METHODS = {
    "trained": (0.972, 0.921, 4.1, 0.0),
    "retrain": (0.843, 0.914, 0.0, 1.0),
    "fed_eraser": (0.851, 0.905, 2.3, 0.48),
    "rollback": (0.838, 0.874, 3.2, 0.0),
    "rollback+10": (0.846, 0.908, 2.6, 0.33),
    "fine_tune": (0.934, 0.919, 3.7, 0.1),
    "subtract": (0.612, 0.688, 9.4, 0.0),
    "nothing": (0.972, 0.921, 4.1, 0.0),
}
ACCURACIES = ("test", "retain", "forget", "forget_holdout")
FULL = 9 * ROUNDS


def a_row(method: str, seed: int, backdoor: bool = True) -> dict[str, Any]:
    """Return one plausible row of results.json."""
    forget, test, l2, share = METHODS.get(method, METHODS["fed_eraser"])
    rng = np.random.default_rng([seed, len(method), ord(method[0])])
    shared = np.random.default_rng(seed).normal(0, 0.012)
    near = 0.0 if method == "retrain" else 1.0
    accuracy = dict(zip(ACCURACIES, (test, test + 0.02, forget, 0.841), strict=True))
    metrics = {
        f"{name}_accuracy": float(value + shared + rng.normal(0, 0.004))
        for name, value in accuracy.items()
    }
    metrics |= {f"{name}_loss": -math.log(v) * 2 for name, v in accuracy.items()}
    metrics |= {
        "l2_to_retrain": l2 * near * (1 + rng.normal(0, 0.05)),
        "cosine_to_retrain": 0.0102 * l2 * near * (1 + rng.normal(0, 0.05)),
        "disagreement_with_retrain": 0.03 * l2 * near * (1 + rng.normal(0, 0.1)),
        "backdoor_success": max(forget - 0.83, 0.01) * 5 if backdoor else None,
    }
    rounds = round(share * FULL)
    base = a_cost(FULL, 0.5)
    own = a_cost(rounds, share * 0.5 + abs(rng.normal(0, 0.01)))
    ratio = {k: own[k] / base[k] if base[k] else None for k in own}
    return {
        "method": method,
        "seed": seed,
        "metrics": metrics,
        "cost": {**own, "ratio_to_retrain": ratio},
        "model_sha256": hashlib.sha256(f"{method}{seed}".encode()).hexdigest(),
    }


def a_cost(client_rounds: int, seconds: float) -> dict[str, Any]:
    return {
        "client_rounds": client_rounds,
        "local_steps": client_rounds * 20,
        "examples": client_rounds * 600,
        "bytes_up": client_rounds * 101_770 * 4,
        "bytes_down": client_rounds * 101_770 * 4,
        "server_seconds": seconds / 5,
        "wall_seconds": 14 * seconds,
        "history_bytes": 0 if client_rounds == FULL else 122_124_000,
    }


def some_results(
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0, 1, 2),
    backdoor: bool = True,
) -> dict[str, Any]:
    rows = [a_row(method, seed, backdoor) for method in methods for seed in seeds]
    return {
        "schema": "fedunlearn-results/v1",
        "scenario": {
            "name": "digits, one hospital withdraws",
            "data": {"name": "digits", "partition": "dirichlet"},
            "model": "mlp",
            "seeds": list(seeds),
            "rounds": ROUNDS,
            "clients": CLIENTS,
            "clients_per_round": CLIENTS,
            "forget": [3],
        },
        "rows": rows,
        "history": {"rounds": ROUNDS, "clients": CLIENTS, "bytes": 134_336_400},
    }


def some_input(results: dict[str, Any] | None = None, **changes: Any) -> ReportInput:
    rng = np.random.default_rng(7)
    shares = rng.dirichlet([0.4] * CLIENTS, CLASSES).T
    curves = {
        s: [
            float(0.93 - 0.83 * math.exp(-r / 5) + rng.normal(0, 0.008))
            for r in range(ROUNDS + 1)
        ]
        for s in (0, 1, 2)
    }
    given = ReportInput(
        results=results or some_results(),
        accuracy_by_round=curves,
        client_names=[f"hospital-{i}" for i in range(CLIENTS)],
        label_counts=np.round(shares * 140).astype(np.int64),
        forget=[3],
        config_yaml="name: digits\nrounds: 30\nseeds: [0, 1, 2]\n",
        environment={"python": "3.11.7", "machine": "2 cores", "flwr": "1.42.0"},
    )
    return replace(given, **changes)


class Tables(HTMLParser):
    """Collects the text of every cell of every table, and all element names."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.elements: set[str] = set()
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self.cell).split()))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)


def parsed(page: str) -> Tables:
    tables = Tables()
    tables.feed(page)
    return tables


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(some_input())


class TestEstimate:
    def test_interval_by_hand(self) -> None:
        # mean 2, s = 1, t(0.975, 2) = 4.302653, over sqrt(3)
        found = estimate([1.0, 2.0, 3.0])
        assert found is not None
        assert found.mean == 2.0
        assert found.half_width == pytest.approx(2.484138, abs=1e-6)
        assert found.n == 3

    def test_interval_against_scipy(self) -> None:
        values = np.random.default_rng(0).normal(3, 2, 9)
        found = estimate(values.tolist(), confidence=0.9)
        low, high = scipy.stats.t.interval(
            0.9, 8, loc=values.mean(), scale=scipy.stats.sem(values)
        )
        assert found is not None
        assert found.half_width is not None
        assert found.mean - found.half_width == pytest.approx(low)
        assert found.mean + found.half_width == pytest.approx(high)

    def test_none_is_dropped_and_one_value_has_no_interval(self) -> None:
        assert estimate([None, 0.5, None]) == Estimate(0.5, None, 1)

    def test_nothing_left(self) -> None:
        assert estimate([None, None]) is None
        assert estimate([]) is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite_is_said(self, bad: float) -> None:
        assert format_estimate(estimate([1.0, bad, 2.0]), 1) == "not finite"


class TestFormat:
    @pytest.mark.parametrize(
        ("e", "digits", "percent", "text"),
        [
            (Estimate(0.9312, 0.0041, 3), 1, True, "93.1 ± 0.4"),
            (Estimate(0.9312, None, 1), 1, True, "93.1"),
            (Estimate(-0.5, 0.25, 3), 2, False, "\u22120.50 ± 0.25"),
            (Estimate(-0.0001, 0.0, 3), 1, True, "0.0 ± 0.0"),
            (Estimate(270.0, None, 1), 0, False, "270"),
            (None, 1, True, "\u2013"),
        ],
    )
    def test_text(
        self, e: Estimate | None, digits: int, percent: bool, text: str
    ) -> None:
        assert format_estimate(e, digits, percent) == text

    def test_sign(self) -> None:
        assert format_estimate(Estimate(0.012, 0.001, 3), 1, True, signed=True) == (
            "+1.2 ± 0.1"
        )
        assert format_estimate(Estimate(0.0, 0.0, 3), 1, signed=True) == "0.0 ± 0.0"


def tiny_rows(values: dict[str, dict[int, float | None]]) -> list[dict[str, Any]]:
    cost = {**a_cost(2, 1.0), "ratio_to_retrain": {"client_rounds": None}}
    return [
        {"method": m, "seed": s, "metrics": {"x": v}, "cost": cost}
        for m, by_seed in values.items()
        for s, v in by_seed.items()
    ]


class TestSummary:
    def test_pairs_by_seed_and_not_by_position(self) -> None:
        rows = tiny_rows(
            {"retrain": {0: 1.0, 1: 5.0, 2: 9.0}, "a": {2: 10.0, 0: 2.0, 1: 6.0}}
        )
        gap = gap_to_retrain(rows, "x")["a"]
        assert (gap.mean, gap.half_width, gap.n) == (1.0, 0.0, 3)

    def test_unpaired_seeds_are_left_out(self) -> None:
        rows = tiny_rows(
            {
                "retrain": {0: 1.0, 1: None},
                "a": {0: 4.0, 1: 9.0, 7: 50.0},
                "b": {1: 2.0},
            }
        )
        gaps = gap_to_retrain(rows, "x")
        assert gaps["a"] == Estimate(3.0, None, 1)
        assert "b" not in gaps

    def test_seed_distance_by_hand(self) -> None:
        rows = tiny_rows({"retrain": {0: 1.0, 1: 2.0, 2: 4.0}})
        assert seed_distance(rows, "x") == 2.0  # (1 + 3 + 2) / 3
        assert seed_distance(rows[:1], "x") is None

    def test_order_costs_and_ratios(self) -> None:
        results = some_results()
        found = {s.method: s for s in summarise(results["rows"])}
        assert tuple(found) == tuple(METHODS)
        assert found["retrain"].seeds == (0, 1, 2)
        moved = found["retrain"].cost["bytes_moved"]
        assert moved == Estimate(2 * FULL * 101_770 * 4, 0.0, 3)
        assert found["retrain"].ratio["client_rounds"] == Estimate(1.0, 0.0, 3)
        assert found["retrain"].ratio["history_bytes"] is None

    def test_contradictions_are_loud(self) -> None:
        rows = tiny_rows({"a": {0: 1.0}})
        with pytest.raises(DataError, match="no row of method 'retrain'"):
            gap_to_retrain(rows, "x")
        with pytest.raises(DataError, match="two rows for seed 0"):
            summarise(rows * 2)


class TestPage:
    def test_same_input_same_bytes(self, page: str) -> None:
        assert render_report(some_input()) == page

    def test_same_bytes_in_another_process(self, page: str) -> None:
        code = (
            "import sys, importlib.util as u, hashlib\n"
            f"spec = u.spec_from_file_location('t', {__file__!r})\n"
            "t = u.module_from_spec(spec); spec.loader.exec_module(t)\n"
            "from fedunlearn.report import render_report as r\n"
            "sys.stdout.write(hashlib.sha256(r(t.some_input()).encode()).hexdigest())"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout == hashlib.sha256(page.encode()).hexdigest()

    def test_asks_nothing_of_the_network(self, page: str) -> None:
        for sign in (
            "http://",
            "https://",
            "src=",
            "@import",
            "//cdn",
            "<link",
            "url(h",
        ):
            assert sign not in page
        assert "script" not in parsed(page).elements
        assert set(re.findall(r'href="(.)', page)) <= {"#"}
        assert "default-src 'none'" in page

    def test_ids_are_unique_and_found(self, page: str) -> None:
        ids = re.findall(r'\sid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
        assert used
        assert set(used) <= set(ids)

    def test_every_number_is_the_summarys(self, page: str) -> None:
        results = some_results()
        lines = parsed(page).tables[0][2:]
        gaps = gap_to_retrain(results["rows"], "forget_accuracy")
        for line, s in zip(lines, summarise(results["rows"]), strict=True):
            m, gap = s.metrics, gaps[s.method]
            mb = s.cost["bytes_moved"]
            assert line[0].split()[0] == s.method
            assert line[1:] == [
                *(format_estimate(m[f"{a}_accuracy"], 1, True) for a in ACCURACIES),
                format_estimate(gap, 1, True, signed=True),
                format_estimate(m["l2_to_retrain"], 2),
                format_estimate(m["cosine_to_retrain"], 4),
                format_estimate(m["disagreement_with_retrain"], 1, True),
                format_estimate(m["backdoor_success"], 1, True),
                format_estimate(s.cost["client_rounds"], 0),
                format_estimate(s.ratio["client_rounds"], 2),
                format_estimate(mb and mb.times(1e-6), 0),
                format_estimate(s.cost["history_bytes"].times(1e-6), 0),
                format_estimate(s.cost["wall_seconds"], 2),
            ]

    def test_references_are_marked(self, page: str) -> None:
        lines = parsed(page).tables[0][2:]
        assert [line[0] for line in lines[:3]] == [
            "trained before",
            "retrain reference",
            "fed_eraser",
        ]
        assert page.count('<tr class="reference">') == 4  # also among the losses

    def test_story(self, page: str) -> None:
        story = re.search(r'<p class="story">(.*?)</p>', page, re.DOTALL)
        assert story is not None
        text = html.unescape(story.group(1)).replace("\u00a0", " ")
        assert "hospital-3 left" in text
        assert "for 30 rounds" in text
        trained = summarise(some_results()["rows"])[0].metrics["forget_accuracy"]
        assert f"scores {format_estimate(trained, 1, True)} %" in text
        nearest = text[text.index("Nearest") : text.index("How near")]
        assert nearest.index("rollback+10") < nearest.index("fed_eraser")
        assert "points apart on average" in text
        assert "Beware" not in text

    def test_never_claims_forgetting(self, page: str) -> None:
        assert "forgotten" not in page.lower()

    def test_says_when_doing_nothing_looks_as_good(self) -> None:
        results = some_results()
        for row in results["rows"]:
            row["metrics"]["forget_accuracy"] = 0.9 + 0.01 * row["seed"]
        assert "hardly tell unlearning from doing nothing" in render_report(
            some_input(results)
        )

    def test_one_seed(self) -> None:
        report = some_input(some_results(seeds=[4]), accuracy_by_round={4: [0.1, 0.5]})
        page = render_report(report)
        assert not any("±" in c for row in parsed(page).tables[0] for c in row)
        assert "One seed, so there are no intervals." in page
        assert "With a single seed" in page

    def test_no_backdoor_no_column(self, page: str) -> None:
        without = render_report(some_input(some_results(backdoor=False)))
        assert "backdoor %" in parsed(page).tables[0][1]
        assert "backdoor" not in without

    def test_missing_numbers_and_free_retraining(self) -> None:
        results = some_results()
        for row in results["rows"]:
            row["cost"]["ratio_to_retrain"] = dict.fromkeys(
                row["cost"]["ratio_to_retrain"]
            )
            if row["method"] == "subtract":
                row["metrics"] = dict.fromkeys(row["metrics"])
        page = render_report(some_input(results, accuracy_by_round={}))
        subtract = parsed(page).tables[0][2:][list(METHODS).index("subtract")]
        assert set(subtract[1:10]) == {"\u2013"}
        assert "Gap and cost" not in page
        assert "Training</h2>" not in page

    @pytest.mark.parametrize("count", [0, 1, 28])
    def test_few_and_many_methods(self, count: int) -> None:
        names = ["trained", "retrain", *(f"method-{i}" for i in range(count))]
        page = render_report(some_input(some_results(names)))
        assert len(parsed(page).tables[0]) == 2 + len(names)

    def test_nasty_names_are_text(self) -> None:
        nasty = [
            "<script>alert(1)</script>",
            "</svg><img src=x onerror=alert(1)>",
            '$\\frac{1}{$ 🦊 \x00\n|`id="m1"`',
            "]]>-->&amp;{{ 7*7 }}",
        ]
        results = some_results(["trained", "retrain", *nasty])
        results["scenario"]["name"] = nasty[0]
        names = [*nasty, *(f"c{i}" for i in range(6))]
        report = some_input(
            results,
            client_names=names,
            forget=[0, 1, 2, 3],
            config_yaml=nasty[1],
            environment={nasty[0]: nasty[1]},
        )
        page = render_report(report)
        elements = parsed(page).elements
        assert not {"script", "img"} & elements
        assert "\x00" not in page
        assert "{{ 7*7 }}" in html.unescape(page)
        assert [line[0] for line in parsed(page).tables[0][4:]] == [
            " ".join(n.replace("\x00", "\ufffd").split()) for n in nasty
        ]

    def test_parts_that_do_not_fit_are_loud(self) -> None:
        with pytest.raises(DataError, match="do not fit 2 client names"):
            render_report(some_input(client_names=["a", "b"]))
        with pytest.raises(DataError, match="leaver 10 is not one of 10"):
            render_report(some_input(forget=[10]))
        with pytest.raises(DataError, match="schema 'v0'"):
            render_report(some_input({**some_results(), "schema": "v0"}))
        with pytest.raises(DataError, match="no rows"):
            render_report(some_input({**some_results(), "rows": []}))

    def test_leaves_global_settings_and_input_alone(self) -> None:
        import matplotlib as mpl

        results = some_results()
        before, copy = dict(mpl.rcParams), json.dumps(results)
        render_report(some_input(results))
        assert dict(mpl.rcParams) == before
        assert json.dumps(results) == copy

    def test_import_is_light(self) -> None:
        code = (
            "import sys, fedunlearn.report\n"
            "heavy = {'matplotlib', 'jinja2', 'scipy', 'torch', 'flwr', 'ray'}\n"
            "sys.stdout.write(str(sorted(heavy & set(sys.modules))))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert out.stdout == "[]"


class TestClients:
    def test_few_stay_in_order(self) -> None:
        assert shown_clients(np.arange(40), [7]) == list(range(40))

    def test_many_are_leavers_then_39_largest(self) -> None:
        shown = shown_clients(np.arange(100), [7, 90])
        assert shown == [90, 7, *(i for i in range(99, 59, -1) if i != 90)]

    def test_many_say_so(self) -> None:
        page = render_report(
            some_input(
                client_names=[f"phone {i}" for i in range(300)],
                label_counts=np.arange(300 * 30).reshape(300, 30),
            )
        )
        assert "40 of 300 clients: 1 leaver first" in page
        assert "the 39 largest of the others" in page
        assert "▸ phone 3<" in page


class TestPlots:
    def test_labels_do_not_cover_each_other(self) -> None:
        rng = np.random.default_rng(3)
        points = [(float(x), float(y)) for x, y in rng.uniform(150, 350, (25, 2))]
        frame = Box(0, 0, 700, 450)
        boxes = place(points, [(70.0, 12.0)] * 25, frame, [])
        assert all(box.outside(frame) < 1e-6 for box in boxes)
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert max(a.overlap(b) for a, b in pairs) < 1e-3

    def test_inline_keeps_text_that_looks_like_markup(self) -> None:
        svg = (
            '<?xml?><svg xmlns="http://a" id="f"><g id="used"/><use href="#used"/>'
            '<text id="t">xmlns="b" id="t"</text></svg>'
        )
        assert inline(svg) == (
            '<svg><g id="used"/><use href="#used"/><text>xmlns="b" id="t"</text></svg>'
        )

    def test_every_method_is_labelled(self, page: str) -> None:
        plot = page[page.index("Gap and cost</h2>") : page.index("Training</h2>")]
        labels = re.findall(r"<text[^>]*>([^<]+)</text>", plot)
        assert set(METHODS) <= set(labels)

    def test_short_names(self) -> None:
        assert short("a b") == "a b"
        assert short("x" * 40 + "yz") == "x" * 17 + "…" + "x" * 6 + "yz"


class TestTables:
    def test_markdown(self) -> None:
        results = some_results()
        lines = markdown_table(results).splitlines()
        assert len(lines) == 2 + len(METHODS)
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
        assert lines[0].startswith(
            "| method | test % | retain % | forget % | holdout %"
        )
        assert lines[2].startswith("| `trained` (before) | ")
        cells = [cell.strip() for cell in lines[4].split("|")[2:-1]]
        assert tuple(cells) == tabulate(results).lines[2].cells

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("fed_eraser", "`fed_eraser`"),
            ("a|b", "`a\\|b`"),
            ("a`b", "`` a`b ``"),
            ("a\nb", "`a b`"),
        ],
    )
    def test_markdown_names(self, name: str, text: str) -> None:
        assert markdown(name) == text

    def test_latex(self) -> None:
        text = latex_table(some_results(["trained", "retrain", "a_b%\\"]))
        lines = text.splitlines()
        columns = len(tabulate(some_results()).heads)
        assert lines[0] == r"\begin{tabular}{l" + "r" * columns + "}"
        assert lines[-1] == r"\end{tabular}"
        for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\cmidrule(lr){2-5}"):
            assert rule in text
        body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
        assert {line.count("&") for line in body} == {columns}
        assert body[0].startswith(r"\emph{trained} & ")
        assert body[2].startswith(r"a\_b\%\textbackslash{} & ")
        assert "±" not in text
        assert "\u2212" not in text

    @pytest.mark.parametrize("table", [markdown_table, latex_table])
    def test_one_seed_and_schema(self, table: Callable[[dict[str, Any]], str]) -> None:
        text = table(some_results(seeds=[0], backdoor=False))
        assert "pm" not in text
        assert "±" not in text
        assert "backdoor" not in text
        with pytest.raises(DataError, match="schema None"):
            table({})
